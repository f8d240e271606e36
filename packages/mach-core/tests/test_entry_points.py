import importlib.metadata
from pathlib import Path

import pytest

from mach.io.entry_points import entry_points


def declare(site: Path, distribution: str, text: str) -> None:
    info = site / f"{distribution}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "entry_points.txt").write_text(text)


def test_the_same_entry_points_are_found_as_importlib_metadata_finds() -> None:
    for group in ("mach.commands", "console_scripts", "pytest11"):
        expected = {
            entry.name: entry.value.partition(" ")[0]
            for entry in importlib.metadata.entry_points(group=group)
        }
        assert {entry.name: entry.target for entry in entry_points(group).values()} == expected


def test_only_the_group_asked_for_counts_and_earlier_paths_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(tmp_path / "a", "first_one", "[other]\nx = no:no\n\n[mine]\n# note\none = os.path:join [extra]\n")
    declare(tmp_path / "b", "first_one", "[mine]\none = nowhere:never\nshadowed = a:b\n")
    declare(tmp_path / "b", "second", "[mine]\ntwo=os:getcwd\n")
    monkeypatch.setattr("sys.path", [str(tmp_path / "a"), str(tmp_path / "missing"), str(tmp_path / "b")])
    found = entry_points("mine")
    assert {name: entry.target for name, entry in found.items()} == {
        "one": "os.path:join",
        "two": "os:getcwd",
    }
    assert found["one"].distribution == "first-one"
    assert found["one"].load()("a", "b") == "a/b"


def test_unreadable_metadata_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "bad-1.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_bytes(b"\xff\xff")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert entry_points("mine") == {}
