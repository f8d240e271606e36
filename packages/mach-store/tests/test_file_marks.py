import os
from pathlib import Path

import pytest

from mach_store.file_marks import FileMarks


@pytest.fixture
def files(tmp_path: Path):
    """Three open files, a second old: (paths, descriptors, marks)."""
    paths = [tmp_path / name for name in "abc"]
    fds = []
    for path in paths:
        path.write_bytes(bytes(100))
        os.utime(path, ns=(0, 10**18))
        fds.append(os.open(path, os.O_RDONLY))
    marks = FileMarks()
    for fd, path in zip(fds, paths, strict=True):
        marks.remember(fd, str(path))
    yield paths, fds, marks
    for fd in fds:
        os.close(fd)


def test_files_that_are_read_replaced_or_removed_have_not_changed(files) -> None:
    (a, b, c), fds, marks = files
    a.read_bytes()
    (a.parent / "new").write_bytes(b"other")
    (a.parent / "new").rename(b)
    c.unlink()
    assert marks.changed(fds) is None


@pytest.mark.parametrize("how", ["overwritten", "truncated", "lengthened"])
def test_a_file_that_is_written_to_is_named(files, how: str) -> None:
    (_, b, _), fds, marks = files
    if how == "overwritten":
        with b.open("r+b") as handle:
            handle.write(b"x")
    else:
        os.truncate(b, 50 if how == "truncated" else 150)
    assert marks.changed(fds * 3) == str(b)
    assert marks.changed([fds[0], fds[2]]) is None
