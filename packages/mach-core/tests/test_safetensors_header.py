import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mach.errors import ConfigError, HeaderError
from mach.io.safetensors_header import MAX_HEADER_BYTES, parse_header, read_header, read_headers


def write_raw(path: Path, header: object, data: int = 0) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(data))
    return path


def tensor(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_offsets_are_absolute_and_metadata_is_no_tensor(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "mlx"}, "a": tensor(), "b": tensor("BF16", [3, 4], [8, 32])}
    path = write_raw(tmp_path / "m.safetensors", header, 32)
    entries = read_header(path)
    assert list(entries) == ["a", "b"]
    assert entries["b"].start == path.stat().st_size - 24
    assert entries["b"].nbytes == 24
    assert entries["b"].shape == (3, 4)
    assert entries["b"].file == str(path)


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"a": tensor(dtype="F31")}, "dtype 'F31'"),
        ({"a": tensor(dtype=None)}, "dtype"),
        ({"a": tensor(shape=[-2])}, "extent"),
        ({"a": tensor(shape=[2.0])}, "extent"),
        ({"a": tensor(shape=[True, 2])}, "extent"),
        ({"a": tensor(shape=[1 << 41])}, "extent"),
        ({"a": tensor(shape=[1 << 40] * 16)}, "spans 8 bytes"),
        ({"a": tensor(shape=[1] * 17 + [2])}, "no shape"),
        ({"a": tensor(shape=[3])}, "spans 8 bytes, but F32 \\[3\\] takes 12"),
        ({"a": tensor(offsets=[8, 0])}, "data_offsets"),
        ({"a": tensor(offsets=[-8, 0])}, "data_offsets"),
        ({"a": tensor(offsets=[0])}, "data_offsets"),
        ({"a": tensor(offsets=["0", "8"])}, "data_offsets"),
        ({"a": tensor(offsets=[1 << 60, (1 << 60) + 8])}, "truncated"),
        ({"a": tensor(), "b": tensor(offsets=[4, 12])}, "'b' overlaps 'a'"),
        ({"a": 5}, "not a JSON object"),
        ([], "not a JSON object"),
        (b'{"a": 1, "a": 2}', "given twice"),
        (b"\xff\xff", "not valid JSON"),
        (b"{" * 50_000, "nested too deeply|not valid JSON"),
    ],
)
def test_headers_that_lie_are_refused_with_the_tensor_named(
    tmp_path: Path, header: object, problem: str
) -> None:
    path = write_raw(tmp_path / "m.safetensors", header, 16)
    with pytest.raises(HeaderError, match=problem) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert caught.value.path == str(path)


@pytest.mark.parametrize("length", [0, 1, 100, MAX_HEADER_BYTES + 1, (1 << 64) - 1])
def test_impossible_header_lengths_are_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(HeaderError, match="header length|not valid"):
        read_header(path)


def test_files_that_are_no_files_are_refused(tmp_path: Path) -> None:
    for name, make in {"fifo": os.mkfifo, "dir": os.mkdir, "loop": lambda p: os.symlink(p, p)}.items():
        path = tmp_path / f"{name}.safetensors"
        make(path)
        with pytest.raises(HeaderError, match="regular|cannot be read"):
            read_header(path)
    (tmp_path / "short.safetensors").write_bytes(b"abc")
    with pytest.raises(HeaderError, match="too few"):
        read_header(tmp_path / "short.safetensors")


def test_a_million_names_are_refused_quickly(tmp_path: Path) -> None:
    raw = b'{"x":[' + b"0," * 4_000_000 + b"0]}"
    path = write_raw(tmp_path / "m.safetensors", raw)
    begin = time.monotonic()
    with pytest.raises(HeaderError, match="more entries than any checkpoint"):
        read_header(path)
    names = b"{" + b",".join(
        b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(10**6)
    )
    with pytest.raises(HeaderError, match="header length"):
        read_header(write_raw(tmp_path / "n.safetensors", names + b"}"))
    assert time.monotonic() - begin < 3


def test_shards_are_merged_and_shapes_shared(tmp_path: Path, write_tensors: Callable[..., None]) -> None:
    for i in range(3):
        write_tensors(tmp_path / f"model-0000{i}-of-3.safetensors", {f"t{i}": ("F32", (1000, 7))})
    write_tensors(tmp_path / "consolidated.safetensors", {"t0": ("F32", (1,))})
    tensors = read_headers(tmp_path)
    assert list(tensors) == ["t0", "t1", "t2"]
    assert tensors["t0"].shape is tensors["t2"].shape


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path, write_tensors: Callable[..., None]) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors"):
        write_tensors(tmp_path / name, {"t": ("F32", (1,))})
    with pytest.raises(HeaderError, match="'t' is also in"):
        read_headers(tmp_path)


def test_an_index_must_match_the_shards(tmp_path: Path, write_tensors: Callable[..., None]) -> None:
    write_tensors(tmp_path / "model-1.safetensors", {"t": ("F32", (1,))})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"t": "model-1.safetensors"}}))
    assert list(read_headers(tmp_path)) == ["t"]
    for weight_map, problem in [
        ({"t": "model-1.safetensors", "u": "model-1.safetensors"}, "promises tensor 'u'"),
        ({"t": "model-2.safetensors"}, "incomplete"),
        ({"t": "../model-1.safetensors"}, "plain .safetensors"),
        ({"t": 5}, "not a file name"),
        ([], "weight_map is not an object"),
        ({}, "weight_map is empty"),
    ]:
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(HeaderError, match=problem):
            read_headers(tmp_path)
    index.write_text(json.dumps({"weight_map": {"t": "model-1.safetensors"}}))
    write_tensors(tmp_path / "model-2.safetensors", {"t": ("F32", (1,))})
    with pytest.raises(HeaderError, match=r"model-2.safetensors: is not in"):
        read_headers(tmp_path)
    index.write_text("<html>")
    with pytest.raises(ConfigError, match="not valid JSON"):
        read_headers(tmp_path)


def test_a_directory_without_safetensors_has_no_tensors(tmp_path: Path) -> None:
    assert read_headers(tmp_path) == {}


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F4", "nope", 3]),
        "shape": st.lists(st.integers(-1, 4) | st.just("x"), max_size=3) | st.none(),
        "data_offsets": st.lists(st.integers(-4, 80), max_size=3) | st.text(max_size=2),
    },
)


@given(st.dictionaries(st.text(max_size=3), FIELDS | st.integers(), max_size=4))
def test_any_header_gives_consistent_entries_or_a_header_error(header: dict) -> None:
    raw = json.dumps(header).encode()
    size = 8 + len(raw) + 64
    try:
        entries = parse_header(raw, "m.safetensors", size, {})
    except HeaderError as error:
        assert "m.safetensors" in str(error)
        return
    covered = 0
    for entry in entries.values():
        assert 8 + len(raw) <= entry.start <= entry.end <= size
        covered += entry.nbytes
    assert covered <= 64


@given(st.binary(max_size=100))
def test_any_bytes_give_entries_or_a_header_error(raw: bytes) -> None:
    try:
        parse_header(raw, "m.safetensors", 200, {})
    except HeaderError:
        pass
