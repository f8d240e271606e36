import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mach.discovery import local_models as module
from mach.discovery.local_models import local_models


@pytest.fixture
def nothing_bundled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever checkpoints are installed beside mach-core, these tests see none of them."""
    monkeypatch.setattr(module, "entry_points", lambda _group: {})


@pytest.mark.usefixtures("nothing_bundled")
def test_checkpoints_are_found_three_levels_deep_once_each(
    tmp_path: Path, families: dict[str, dict], make_checkpoint: Callable[..., Path]
) -> None:
    config = families["qwen3_moe"]
    tensors = {"x": ("BF16", (500,))}
    make_checkpoint(config, tensors, name="models/one")
    make_checkpoint(config, tensors, name="models/org/two")
    make_checkpoint(config, tensors, name="models/a/b/three")
    make_checkpoint(config, tensors, name="models/a/b/c/too-deep")
    make_checkpoint(config, name="models/no-weights")
    make_checkpoint(config, tensors, name="models/.hidden")
    os.symlink(tmp_path / "models", tmp_path / "models" / "loop")
    os.symlink(tmp_path / "models" / "one", tmp_path / "models" / "same")
    rows, warnings = local_models([str(tmp_path / "models"), str(tmp_path / "models" / "one"), "/nowhere"])
    assert {row.name for row in rows} == {"one", os.path.join("org", "two"), os.path.join("a", "b", "three")}
    assert not warnings
    assert all(row.installed and row.model_type == "qwen3_moe" and row.size > 1000 for row in rows)


@pytest.mark.usefixtures("nothing_bundled")
def test_a_broken_config_is_a_row_with_a_warning(
    tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    directory = make_checkpoint({}, {}, name="models/broken")
    rows, warnings = local_models([str(tmp_path / "models")])
    assert [(row.name, row.model_type, row.supported) for row in rows] == [("broken", None, False)]
    assert str(directory / "config.json") in warnings[0]


def test_the_search_is_bounded(
    tmp_path: Path, make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(5):
        make_checkpoint({"model_type": "gemma4"}, {}, name=f"models/m{index}")
    monkeypatch.setattr(module, "MAX_DIRECTORIES", 4)
    rows, warnings = local_models([str(tmp_path / "models")])
    assert len(rows) < 5
    assert "was not scanned" in warnings[-1]


def test_an_installed_checkpoint_is_listed_and_a_broken_one_warned_of(
    tmp_path: Path, make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_checkpoint({"model_type": "gemma4"}, {}, name="bundled")
    info = tmp_path / "site" / "bundle-1.dist-info"
    info.mkdir(parents=True)
    (info / "entry_points.txt").write_text(
        "[mach.checkpoints]\ntiny = bundled_checkpoint_module:directory\nbad = no_such_module:directory\n"
    )
    (tmp_path / "site" / "bundled_checkpoint_module.py").write_text(
        f"def directory():\n    return {str(directory)!r}\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    rows, warnings = local_models([])
    assert ("tiny", str(directory)) in [(row.name, row.path) for row in rows]
    assert "installed checkpoint 'bad' is broken" in warnings[0]
