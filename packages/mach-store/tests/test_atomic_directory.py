import os

import pytest

from mach_store.sidecar.atomic_directory import install_directory


def make(path, content: str) -> None:
    path.mkdir()
    (path / "file").write_text(content)


def test_a_new_directory_takes_its_name(tmp_path) -> None:
    make(tmp_path / "new", "1")
    install_directory(str(tmp_path / "new"), str(tmp_path / "target"))
    assert os.listdir(tmp_path) == ["target"]


def test_an_old_directory_is_replaced_and_deleted(tmp_path) -> None:
    make(tmp_path / "target", "old")
    (tmp_path / "target" / "only old").write_text("")
    make(tmp_path / "new", "new")
    install_directory(str(tmp_path / "new"), str(tmp_path / "target"))
    assert os.listdir(tmp_path) == ["target"]
    assert os.listdir(tmp_path / "target") == ["file"]
    assert (tmp_path / "target" / "file").read_text() == "new"


def test_the_target_exists_and_is_whole_when_the_old_one_cannot_be_deleted(tmp_path, monkeypatch) -> None:
    make(tmp_path / "target", "old")
    make(tmp_path / "new", "new")

    def killed(path: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        install_directory(str(tmp_path / "new"), str(tmp_path / "target"))
    assert (tmp_path / "target" / "file").read_text() == "new"
    assert (tmp_path / "new" / "file").read_text() == "old"


def test_a_missing_source_leaves_the_target_alone(tmp_path) -> None:
    make(tmp_path / "target", "old")
    with pytest.raises(OSError, match="cannot exchange"):
        install_directory(str(tmp_path / "new"), str(tmp_path / "target"))
    assert (tmp_path / "target" / "file").read_text() == "old"
