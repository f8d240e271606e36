import os
import zlib

import mlx.core as mx
import numpy as np
import pytest

from mach.io.safetensors_header import read_headers
from mach_store.safetensors_writer import (
    OutputTensor,
    WrittenFile,
    copy_file,
    copy_of,
    write_safetensors,
)


def tensor(name: str, data: bytes, *, nbytes: int | None = None) -> OutputTensor:
    size = len(data) if nbytes is None else nbytes
    return OutputTensor(
        name=name, dtype="U8", shape=(size,), nbytes=size, chunks=[data[:3], memoryview(data)[3:]]
    )


def test_mlx_reads_what_is_written(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(str(path), [tensor("a", b"hello"), tensor("b", bytes(range(100)))])
    arrays = mx.load(str(path))
    assert np.array(arrays["a"]).tobytes() == b"hello"
    assert np.array(arrays["b"]).tolist() == list(range(100))
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_a_copied_tensor_keeps_its_bytes_dtype_and_shape(tmp_path) -> None:
    array = mx.random.normal((5, 7), key=mx.random.key(1)).astype(mx.bfloat16)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"x": array, "y": mx.arange(3)})
    entries = read_headers(str(tmp_path))
    out = tmp_path / "copy.safetensors"
    write_safetensors(str(out), [copy_of("renamed", entries["x"])])
    copied = mx.load(str(out))
    assert list(copied) == ["renamed"]
    assert copied["renamed"].dtype == mx.bfloat16
    assert mx.array_equal(copied["renamed"], array)


def test_the_sum_of_what_was_written_is_the_files(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    written = write_safetensors(str(path), [tensor("a", b"hello")], {"note": "x"})
    assert written == WrittenFile(nbytes=path.stat().st_size, crc32=zlib.crc32(path.read_bytes()))
    assert mx.load(str(path), return_metadata=True)[1] == {"format": "mlx", "note": "x"}
    assert copy_file(str(path), str(tmp_path / "copy")) == written
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["copy", "model.safetensors"]


@pytest.mark.parametrize("announced", [4, 6])
def test_a_tensor_of_the_wrong_size_leaves_nothing_under_the_final_name(tmp_path, announced) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match=rf"a brought 5 bytes, not {announced}"):
        write_safetensors(str(path), [tensor("a", b"hello", nbytes=announced)])
    assert not path.exists()


def test_a_source_that_ends_early_is_an_error(tmp_path) -> None:
    source = tmp_path / "model.safetensors"
    mx.save_safetensors(str(source), {"x": mx.arange(1000)})
    entries = read_headers(str(tmp_path))
    os.truncate(source, source.stat().st_size - 8)
    with pytest.raises(OSError, match="ends 8 bytes early"):
        write_safetensors(str(tmp_path / "out.safetensors"), [copy_of("x", entries["x"])])
    assert not (tmp_path / "out.safetensors").exists()
