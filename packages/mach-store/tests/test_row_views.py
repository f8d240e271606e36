import mlx.core as mx
import numpy as np
import pytest

from mach_store.row_views import byte_rows, copy_row


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32, mx.uint32, mx.uint8])
def test_writing_to_the_rows_writes_to_the_array(dtype) -> None:
    array = mx.zeros((3, 2, 4), dtype)
    mx.eval(array)
    rows = byte_rows(array)
    assert rows.shape == (3, 8 * array.itemsize)
    source = mx.arange(8).astype(dtype).reshape(1, 2, 4)
    mx.eval(source)
    copy_row(byte_rows(source)[0], rows[1])
    assert mx.array_equal(array, mx.concatenate([mx.zeros_like(source), source, mx.zeros_like(source)]))


def test_bfloat16_is_widened_exactly_whatever_its_bits() -> None:
    bits = mx.array(np.arange(1 << 16, dtype=np.uint16)).reshape(1, -1)
    narrow, wide = bits.view(mx.bfloat16), mx.zeros((1, 1 << 16), mx.float32)
    mx.eval(narrow, wide)
    copy_row(byte_rows(narrow)[0], byte_rows(wide)[0])
    assert mx.array_equal(wide.view(mx.uint32), bits.astype(mx.uint32) << 16)


def test_rows_of_other_lengths_are_a_mistake() -> None:
    with pytest.raises(AssertionError):
        copy_row(np.zeros(8, np.uint8), np.zeros(12, np.uint8))
