import os

import pytest

from mach_store.errors import SidecarExportError
from mach_store.sidecar.byte_ranges import READ_AHEAD, ByteRanges, read_ahead


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "bytes"
    target.write_bytes(bytes(range(100)))
    return str(target)


def test_a_range_is_read_and_a_file_is_opened_once(path) -> None:
    with ByteRanges() as files:
        assert bytes(files.read(path, 10, 5)) == bytes(range(10, 15))
        os.rename(path, path + ".moved")
        assert bytes(files.read(path, 98, 2)) == bytes([98, 99])


def test_a_buffer_is_used_again_only_when_nobody_sees_it_any_more(path) -> None:
    with ByteRanges() as files:
        kept = files.read(path, 0, 10)[2:4]
        other = files.read(path, 10, 10)
        assert bytes(kept) == bytes([2, 3])
        assert kept.obj is not other.obj
        first = id(other.obj)
        del other
        assert id(files.read(path, 20, 10).obj) == first
        assert bytes(kept) == bytes([2, 3])


def test_a_file_that_ends_early_or_is_gone_is_named(path, tmp_path) -> None:
    with ByteRanges() as files:
        with pytest.raises(SidecarExportError, match=r"bytes: ends at byte 100, 5 bytes early"):
            files.read(path, 95, 10)
        with pytest.raises(SidecarExportError, match=r"gone: cannot be read at byte 0: No such file"):
            files.read(str(tmp_path / "gone"), 0, 1)


def test_items_come_in_order_and_few_are_made_ahead() -> None:
    made = []

    def make(number: int) -> int:
        made.append(number)
        return number * number

    ahead = read_ahead(make, range(100))
    assert [next(ahead) for _ in range(3)] == [0, 1, 4]
    ahead.close()
    assert len(made) <= 3 + READ_AHEAD + 1
    assert list(read_ahead(make, [5, 3, 3])) == [25, 9, 9]


def test_an_error_comes_out_where_its_item_was_due() -> None:
    def make(number: int) -> int:
        if number == 2:
            raise SidecarExportError("two")
        return number

    ahead = read_ahead(make, range(5))
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(SidecarExportError, match="two"):
        next(ahead)
