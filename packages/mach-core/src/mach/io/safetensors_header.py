"""Owns the reading of safetensors headers: names, dtypes, shapes and offsets, never a tensor's bytes.

Format: https://github.com/huggingface/safetensors#format. Headers come from strangers, so every number is
checked against the file's real size before anyone seeks by it, and time and memory are bounded.
"""

from __future__ import annotations

import json
import os
import re
import stat
from typing import Any, NamedTuple

from mach.errors import CheckpointNotFoundError, HeaderError
from mach.io.config_file import read_json_object

INDEX_NAME = "model.safetensors.index.json"
MAX_HEADER_BYTES = 32 << 20
MAX_INDEX_BYTES = 64 << 20
MAX_TENSORS = 500_000
MAX_SHARDS = 4096
MAX_RANK = 16
# Brackets, braces and commas allowed in one header: bounds what the JSON parser can allocate.
MAX_STRUCTURE = 12 * MAX_TENSORS // 2

DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
_DTYPES = {name: name for name in DTYPE_BITS}  # one string object per dtype, however many tensors


class TensorEntry(NamedTuple):
    """Where one tensor lies.

    Attributes:
        dtype: safetensors' name, e.g. `BF16`.
        shape: extents, row-major.
        file: path of the file that holds it.
        start: offset of its first byte from the start of `file`.
        end: offset after its last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.end - self.start


def read_headers(directory: str | os.PathLike[str]) -> dict[str, TensorEntry]:
    """Every tensor of a checkpoint directory's safetensors files; empty if it has none.

    With an index file, its shards are read and must hold what it promises, and there must be no other
    `model*.safetensors`, as mlx-lm loads all of these and asks no index; without one, `model*.safetensors`,
    or failing that every `*.safetensors`.

    Raises:
        HeaderError: a file is unreadable, malformed or missing, or two files hold the same tensor.
        ConfigError: the index file is malformed.
    """
    directory = os.fspath(directory)
    weight_map = _read_index(directory)
    paths = [os.path.join(directory, name) for name in _shard_names(directory, weight_map)]
    tensors: dict[str, TensorEntry] = {}
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
    for path in paths:
        entries = read_header(path, shapes)
        if len(tensors) + len(entries) > MAX_TENSORS:
            raise HeaderError(f"{path}: more than {MAX_TENSORS} tensors in this checkpoint", path=path)
        for twice in tensors.keys() & entries.keys():
            raise _wrong(path, twice, f"is also in {tensors[twice].file}")
        tensors.update(entries)
    if weight_map is not None:
        _check_index(directory, weight_map, tensors)
    return tensors


def read_header(
    path: str | os.PathLike[str], shapes: dict[tuple[int, ...], tuple[int, ...]] | None = None
) -> dict[str, TensorEntry]:
    """The tensors of one safetensors file; `shapes` lets several files share equal shape tuples.

    Raises:
        HeaderError: the file is not a regular readable file, or its header is malformed.
    """
    path = os.fspath(path)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise HeaderError(f"{path}: not a regular file", path=path)
        with open(path, "rb", buffering=0) as handle:
            length = header_length(handle.read(8), path, status.st_size)
            raw = handle.read(length)
    except OSError as error:
        hint = "; the download may be incomplete" if isinstance(error, FileNotFoundError) else ""
        raise HeaderError(f"{path}: cannot be read ({error.strerror}){hint}", path=path) from error
    return parse_header(raw, path, status.st_size, {} if shapes is None else shapes)


def header_length(prefix: bytes, path: str, file_size: int) -> int:
    """The header's length in bytes, from the file's first eight, checked against the file's size.

    Raises:
        HeaderError: the file is too short, or the length is not possible.
    """
    if len(prefix) < 8:
        raise HeaderError(f"{path}: {file_size} bytes are too few for a safetensors file", path=path)
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES or length < 2 or 8 + length > file_size:
        raise HeaderError(
            f"{path}: header length {length} is impossible in a file of {file_size} bytes (at most "
            f"{MAX_HEADER_BYTES} are accepted); it is not a safetensors file, or damaged: fetch it again",
            path=path,
            field="header length",
        )
    return length


def parse_header(
    raw: bytes, path: str, file_size: int, shapes: dict[tuple[int, ...], tuple[int, ...]]
) -> dict[str, TensorEntry]:
    """The tensors that the header JSON `raw` of a file of `file_size` bytes declares.

    Raises:
        HeaderError: it is malformed, or contradicts itself or the file's size.
    """
    if raw.count(b"[") + raw.count(b"{") + raw.count(b",") > MAX_STRUCTURE:
        raise HeaderError(f"{path}: the header holds more entries than any checkpoint has", path=path)
    document = _parse_json(raw, path)
    document.pop("__metadata__", None)
    base = 8 + len(raw)
    entries = {name: _entry(name, fields, path, base, file_size, shapes) for name, fields in document.items()}
    _check_overlap(entries, path)
    return entries


def _parse_json(raw: bytes, path: str) -> dict[str, Any]:
    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=_object)
    except RecursionError:
        raise HeaderError(f"{path}: the header is nested too deeply", path=path) from None
    except ValueError as error:
        raise HeaderError(f"{path}: the header is not valid JSON ({error})", path=path) from None
    if type(document) is not dict:
        raise HeaderError(f"{path}: the header is not a JSON object", path=path)
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name is given twice")
    return result


def _entry(
    name: str,
    fields: Any,
    path: str,
    base: int,
    file_size: int,
    shapes: dict[tuple[int, ...], tuple[int, ...]],
) -> TensorEntry:
    if type(fields) is not dict:
        raise _wrong(path, name, "is not a JSON object")
    declared = fields.get("dtype")
    dtype = _DTYPES.get(declared) if type(declared) is str else None
    if dtype is None:
        raise _wrong(path, name, f"has dtype {str(declared)[:40]!r}, which safetensors lacks")
    extents, offsets = fields.get("shape"), fields.get("data_offsets")
    if type(extents) is not list or len(extents) > MAX_RANK:
        raise _wrong(path, name, f"has no shape of at most {MAX_RANK} extents")
    bits = DTYPE_BITS[dtype]
    for extent in extents:
        if type(extent) is not int or not 0 <= extent <= 1 << 40:
            raise _wrong(path, name, "has an extent that is not an integer from 0 to 2^40")
        bits *= extent
    if type(offsets) is not list or len(offsets) != 2:
        raise _wrong(path, name, "has no data_offsets [start, end]")
    start, end = offsets
    if type(start) is not int or type(end) is not int or not 0 <= start <= end:
        raise _wrong(path, name, "has data_offsets that are not 0 <= start <= end")
    if (end - start) * 8 != bits:
        raise _wrong(path, name, f"spans {end - start} bytes, but {dtype} {extents} takes {-(-bits // 8)}")
    if base + end > file_size:
        raise _wrong(
            path,
            name,
            f"ends at byte {base + end} of a file of {file_size}: the file is truncated, fetch it again",
        )
    shape = tuple(extents)
    return TensorEntry(dtype, shapes.setdefault(shape, shape), path, base + start, base + end)


def _check_overlap(entries: dict[str, TensorEntry], path: str) -> None:
    spans = sorted((entry.start, entry.end, name) for name, entry in entries.items() if entry.nbytes)
    for (_, end, first), (start, _, second) in zip(spans, spans[1:], strict=False):
        if start < end:
            raise _wrong(path, second, f"overlaps {first[:200]!r}")


def _wrong(path: str, name: str, problem: str) -> HeaderError:
    shown = name if len(name) <= 200 else name[:200] + "…"
    return HeaderError(f"{path}: tensor {shown!r} {problem}", path=path, field=name)


def _read_index(directory: str) -> dict[str, str] | None:
    path = os.path.join(directory, INDEX_NAME)
    if not os.path.lexists(path):
        return None
    return parse_index(read_json_object(path, MAX_INDEX_BYTES), path)


def parse_index(document: dict[str, Any], path: str) -> dict[str, str]:
    """The tensor name → file name map of an index document, its file names checked to be plain.

    Raises:
        HeaderError: `weight_map` is absent, too large, or names a file outside the directory.
    """
    weight_map = document.get("weight_map")
    if type(weight_map) is not dict or len(weight_map) > MAX_TENSORS:
        raise HeaderError(
            f"{path}: weight_map is not an object of at most {MAX_TENSORS} tensors",
            path=path,
            field="weight_map",
        )
    if not weight_map:
        raise HeaderError(f"{path}: weight_map is empty: fetch it again", path=path, field="weight_map")
    names = set()
    for tensor, name in weight_map.items():
        if type(name) is not str:
            raise HeaderError(f"{path}: weight_map[{tensor!r}] is not a file name", path=path, field=tensor)
        names.add(name)
    if len(names) > MAX_SHARDS:
        raise HeaderError(f"{path}: names more than {MAX_SHARDS} files", path=path, field="weight_map")
    for name in names:
        if not re.fullmatch(r"[^/\\\0]{1,250}\.safetensors", name):
            raise HeaderError(
                f"{path}: weight_map names {name[:200]!r}, not a plain .safetensors file name",
                path=path,
                field="weight_map",
            )
    return weight_map


def _shard_names(directory: str, weight_map: dict[str, str] | None) -> list[str]:
    if weight_map is not None:
        return sorted(set(weight_map.values()))
    return _safetensors_files(directory)


def _safetensors_files(directory: str) -> list[str]:
    """The files `model*.safetensors`, or failing these every `*.safetensors`, in order."""
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".safetensors"))
    except FileNotFoundError:
        raise CheckpointNotFoundError(f"{directory}: no such directory", path=directory) from None
    except OSError as error:
        raise HeaderError(f"{directory}: cannot be listed ({error.strerror})", path=directory) from error
    if len(names) > MAX_SHARDS:
        raise HeaderError(f"{directory}: holds more than {MAX_SHARDS} safetensors files", path=directory)
    return [name for name in names if name.startswith("model")] or names


def _check_index(directory: str, weight_map: dict[str, str], tensors: dict[str, TensorEntry]) -> None:
    path = os.path.join(directory, INDEX_NAME)
    files = {shard: os.path.join(directory, shard) for shard in set(weight_map.values())}
    for name, shard in weight_map.items():
        entry = tensors.get(name)
        if entry is None or entry.file != files[shard]:
            raise HeaderError(
                f"{path}: promises tensor {name[:200]!r} in {shard}, which does not hold it; "
                "the index and the shards are not of one download",
                path=path,
                field=name,
            )
    for name in _safetensors_files(directory):
        if name not in files and name.startswith("model"):
            path = os.path.join(directory, name)
            raise HeaderError(
                f"{path}: is not in {INDEX_NAME}, but loading would put it over the others; it may be left "
                "from another download: move it away",
                path=path,
                field="weight_map",
            )
