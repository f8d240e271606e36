import ctypes
import os
import resource
import sys

import mlx.core as mx
import numpy as np
import pytest

from lme_mlx_pread_ext import release_rows, use_huge_pages

PAGE = os.sysconf("SC_PAGE_SIZE")
elsewhere = sys.platform != "linux" or mx.metal.is_available() or mx.cuda.is_available()
on_linux_memory = pytest.mark.skipif(
    elsewhere, reason="the arrays are not ordinary memory of a Linux process"
)


def resident_pages(address: int, size: int) -> int:
    """Pages of a mapped range that are in memory, as the kernel tells."""
    first, last = address // PAGE * PAGE, -(-(address + size) // PAGE) * PAGE
    pages = (ctypes.c_ubyte * ((last - first) // PAGE))()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mincore(ctypes.c_void_p(first), ctypes.c_size_t(last - first), pages) == 0
    return sum(page & 1 for page in pages)


def address_of(array: mx.array) -> int:
    return np.array(array, copy=False).__array_interface__["data"][0]


@on_linux_memory
@pytest.mark.parametrize("rows", [0, 1, 7, 63, 64])
def test_whole_pages_behind_the_rows_leave_and_the_rows_stay(rows) -> None:
    array = mx.arange(64 * 3000).reshape(64, 3000).astype(mx.float32) + 1
    mx.eval(array)
    begin, row, end = address_of(array), 3000 * 4, address_of(array) + array.nbytes
    before = resident_pages(begin, array.nbytes)
    first, last = -(-(begin + rows * row) // PAGE) * PAGE, end // PAGE * PAGE
    assert release_rows(array, rows) == max(0, last - first)
    assert resident_pages(begin, array.nbytes) == before - max(0, last - first) // PAGE
    kept = np.array(array, copy=False)[:rows]
    assert np.array_equal(kept, np.arange(1, rows * 3000 + 1, dtype=np.float32).reshape(rows, 3000))


@on_linux_memory
def test_rows_that_left_read_as_zeros_and_can_be_written_again() -> None:
    array = mx.ones((8, 4 * PAGE), mx.uint8)
    mx.eval(array)
    release_rows(array, 2)
    view = np.array(array, copy=False)
    assert not view[3:7].any()
    view[5] = 9
    assert array[5].sum().item() == 9 * 4 * PAGE
    assert array[:2].sum().item() == 2 * 4 * PAGE


@on_linux_memory
def test_an_array_of_less_than_a_page_gives_nothing_back() -> None:
    array = mx.ones((4, 8))
    mx.eval(array)
    assert release_rows(array, 0) == 0
    assert array.sum().item() == 32


@on_linux_memory
def test_locked_memory_is_refused_by_the_system() -> None:
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] < 16 * PAGE:
        pytest.skip("this user may not lock memory")
    array = mx.ones((16, 4 * PAGE), mx.uint8)
    mx.eval(array)
    libc, start = ctypes.CDLL(None), -(-address_of(array) // PAGE) * PAGE
    assert libc.mlock(ctypes.c_void_p(start), ctypes.c_size_t(4 * PAGE)) == 0
    with pytest.raises(OSError, match="Invalid argument"):
        release_rows(array, 0)
    assert libc.munlock(ctypes.c_void_p(start), ctypes.c_size_t(4 * PAGE)) == 0
    assert release_rows(array, 0) > 0


@pytest.mark.parametrize(
    ("array", "rows", "message"),
    [
        (mx.ones((4, 8)) + 1, 1, "evaluated"),
        (mx.array(3.0), 0, "must have rows"),
        (mx.zeros((4, 8)), 5, "rows is 5: it must be from 0 to 4"),
        (mx.zeros((4, 8)), -1, "rows is -1"),
        (mx.zeros((4, 8)).T, 1, "not row-contiguous"),
        (mx.broadcast_to(mx.zeros((1, 8)), (4, 8)), 1, "not row-contiguous"),
    ],
)
def test_what_has_no_rows_of_its_own_is_refused(array, rows, message) -> None:
    if message != "evaluated":
        mx.eval(array)
    with pytest.raises(ValueError, match=message):
        release_rows(array, rows)


def test_only_an_mlx_array_is_taken() -> None:
    with pytest.raises(TypeError, match="must be an mlx.core.array"):
        release_rows(np.zeros((4, 4)), 1)  # type: ignore[arg-type]


@on_linux_memory
def test_huge_pages_are_asked_for_where_the_array_fills_them() -> None:
    array = mx.zeros((16, 1 << 19), mx.uint8)
    mx.eval(array)
    begin = address_of(array)
    whole = (begin + array.nbytes) // PAGE * PAGE - -(-begin // PAGE) * PAGE
    asked = use_huge_pages(array)
    assert asked in (0, whole), "a kernel without huge pages gives none"
    assert resident_pages(begin, array.nbytes) >= whole // PAGE, "memory is there before it is needed"
    view = np.array(array, copy=False)
    assert not view.any()
    view[3] = 7
    assert array[3].sum().item() == 7 << 19
    release_rows(array, 2)
    assert not view[3].any()


@on_linux_memory
def test_small_arrays_are_left_alone_and_lazy_ones_refused() -> None:
    small = mx.ones((4, 8))
    mx.eval(small)
    assert use_huge_pages(small) == 0
    assert small.sum().item() == 32
    with pytest.raises(ValueError, match="call mx.eval on it first"):
        use_huge_pages(mx.ones((4, 8)) + 1)
    grid = mx.ones((64, 64))
    mx.eval(grid)
    turned = grid.T
    mx.eval(turned)
    with pytest.raises(ValueError, match="not row-contiguous"):
        use_huge_pages(turned)
    with pytest.raises(TypeError):
        use_huge_pages(np.ones(3))
