from pathlib import Path

import pytest

from mach.errors import CheckpointNotFoundError
from mach.io.checkpoint_path import resolve_checkpoint


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    site, checkpoint = tmp_path / "site", tmp_path / "data"
    (site / "bundle-1.dist-info").mkdir(parents=True)
    (site / "bundle-1.dist-info" / "entry_points.txt").write_text(
        "[mach.checkpoints]\ntiny = bundled_tiny_checkpoint:directory\n"
    )
    (site / "bundled_tiny_checkpoint.py").write_text(f"def directory():\n    return {str(checkpoint)!r}\n")
    checkpoint.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (checkpoint / name).write_text("{}")
    monkeypatch.syspath_prepend(site)
    return checkpoint


def test_a_directory_is_itself(bundled: Path) -> None:
    assert resolve_checkpoint(bundled) == resolve_checkpoint(str(bundled)) == bundled


def test_an_installed_name_is_found(bundled: Path) -> None:
    assert resolve_checkpoint("tiny") == bundled


def test_a_directory_wins_over_an_installed_name(
    bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    with pytest.raises(CheckpointNotFoundError, match="tiny: the directory is empty"):
        resolve_checkpoint("tiny")


def test_an_unknown_name_lists_what_is_installed(bundled: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"'none-such' is neither .*installed: .*tiny"):
        resolve_checkpoint("none-such")


def test_incomplete_directories_say_what_they_lack(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="empty"):
        resolve_checkpoint(tmp_path)
    (tmp_path / "other").write_text("")
    with pytest.raises(CheckpointNotFoundError, match="no config.json"):
        resolve_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointNotFoundError, match="no tokenizer"):
        resolve_checkpoint(tmp_path)
    assert resolve_checkpoint(tmp_path, tokenizer=False) == tmp_path
    with pytest.raises(CheckpointNotFoundError, match="a file; give the directory"):
        resolve_checkpoint(tmp_path / "config.json")
