"""Owns `expert_sidecar/layout.json`: its fields, its validation, and the check of file sizes against it.

It knows names, shapes and offsets; it never reads an expert's bytes, so that a preflight can use it without
MLX. The format is documented field by field in `docs/sidecar-format.md`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mach.errors import CheckpointError

MAGIC = "LME-EXPERT-SIDECAR"
SCHEMA = "lme-expert-sidecar-v1"
VERSION = 1
DIRECTORY = "expert_sidecar"
LAYOUT_NAME = "layout.json"
DEFAULT_ALIGNMENT = 16 * 1024
MAX_LAYOUT_BYTES = 256 << 20

DTYPE_BYTES = {"uint8": 1, "uint32": 4, "float16": 2, "bfloat16": 2, "float32": 4}
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
COMPONENTS = ("weight", "scales", "biases", "bias")
QUANTIZATION_MODES = ("affine", "mxfp4", "nvfp4", "mxfp8")


class SidecarLayoutError(CheckpointError):
    """`layout.json` or the size of a layer file contradicts the format; the message names file and field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How the routed experts' weights are packed: MLX's mode, bits per weight, weights per scale."""

    mode: str
    bits: int
    group_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One tensor inside an expert's record; `offset` is in bytes from the record's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def projection(self) -> str:
        """`gate_proj`, `up_proj` or `down_proj`."""
        return self.name.partition(".")[0]

    @property
    def component(self) -> str:
        """`weight`, `scales`, `biases` (quantisation offsets) or `bias` (the layer's own)."""
        return self.name.partition(".")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordSchema:
    """The segments of one expert's record, back to back, and how their weights are packed.

    Attributes:
        segments: in the record's order.
        quantization: for gate_proj, up_proj and down_proj, in this order; None for plain floats.
    """

    segments: tuple[Segment, ...]
    quantization: tuple[Quantization | None, Quantization | None, Quantization | None]

    @property
    def nbytes(self) -> int:
        """Payload bytes of one record, without padding."""
        return sum(segment.nbytes for segment in self.segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFile:
    """One `layer_XX.bin`: `num_experts` records of `schema`, each `stride` bytes apart."""

    index: int
    file: str
    num_experts: int
    stride: int
    schema: RecordSchema
    checksums: tuple[int, ...]

    @property
    def file_bytes(self) -> int:
        """Exact size of the file in bytes; the last record is padded like every other."""
        return self.stride * self.num_experts


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarLayout:
    """The parsed `layout.json` of one checkpoint."""

    model_type: str
    alignment: int
    layers: tuple[LayerFile, ...]

    @property
    def record_bytes_total(self) -> int:
        """Payload bytes of every expert of every layer."""
        return sum(layer.num_experts * layer.schema.nbytes for layer in self.layers)

    def layer(self, index: int) -> LayerFile:
        """The layer with model index `index`; KeyError when the sidecar does not declare it."""
        for layer in self.layers:
            if layer.index == index:
                return layer
        raise KeyError(index)


def layer_file_name(index: int) -> str:
    """File name of the layer with model index `index`: at least two digits."""
    return f"layer_{index:02d}.bin"


def padded(nbytes: int, alignment: int) -> int:
    """`nbytes` rounded up to a multiple of `alignment`."""
    return -(-nbytes // alignment) * alignment


def build_schema(
    tensors: list[tuple[str, str, tuple[int, ...]]], quantization: Mapping[str, Quantization | None]
) -> RecordSchema:
    """A schema with the given (name, dtype, shape) segments laid back to back in order.

    Args:
        tensors: one expert's tensors.
        quantization: projection → how its weight is packed.
    """
    segments, offset = [], 0
    for name, dtype, shape in tensors:
        nbytes = DTYPE_BYTES[dtype]
        for extent in shape:
            nbytes *= extent
        segments.append(Segment(name=name, dtype=dtype, shape=shape, offset=offset, nbytes=nbytes))
        offset += nbytes
    gate, up, down = (quantization[projection] for projection in PROJECTIONS)
    return RecordSchema(segments=tuple(segments), quantization=(gate, up, down))


def dump_layout(layout: SidecarLayout) -> bytes:
    """`layout.json`'s bytes, deterministic, ending in a newline."""
    document = {
        "magic": MAGIC,
        "schema": SCHEMA,
        "version": VERSION,
        "model_type": layout.model_type,
        "alignment": layout.alignment,
        "checksum": "crc32",
        "layers": [_dump_layer(layer) for layer in layout.layers],
    }
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _dump_layer(layer: LayerFile) -> dict[str, Any]:
    return {
        "index": layer.index,
        "file": layer.file,
        "num_experts": layer.num_experts,
        "record_bytes": layer.schema.nbytes,
        "record_stride": layer.stride,
        "quantization": {
            projection: None if q is None else {"mode": q.mode, "bits": q.bits, "group_size": q.group_size}
            for projection, q in zip(PROJECTIONS, layer.schema.quantization, strict=True)
        },
        "segments": [
            {"name": s.name, "dtype": s.dtype, "shape": list(s.shape), "offset": s.offset, "nbytes": s.nbytes}
            for s in layer.schema.segments
        ],
        "checksums": list(layer.checksums),
    }


def read_layout(directory: str | os.PathLike[str]) -> SidecarLayout:
    """Read and validate `<directory>/layout.json`.

    Raises:
        SidecarLayoutError: the file is missing, too large, not JSON, of another version, or inconsistent.
    """
    path = os.path.join(os.fspath(directory), LAYOUT_NAME)
    try:
        with open(path, "rb") as handle:
            raw = handle.read(MAX_LAYOUT_BYTES + 1)
    except OSError as error:
        raise SidecarLayoutError(
            f"{path}: cannot be read ({error.strerror}); make it with tools/export_expert_sidecar.py",
            path=path,
        ) from error
    return parse_layout(raw, path)


def parse_layout(raw: bytes, path: str = LAYOUT_NAME) -> SidecarLayout:
    """Validate the bytes of a `layout.json`; `path` is used in messages only.

    Raises:
        SidecarLayoutError: as `read_layout`.
    """
    if len(raw) > MAX_LAYOUT_BYTES:
        raise SidecarLayoutError(f"{path}: larger than {MAX_LAYOUT_BYTES} bytes", path=path)
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise SidecarLayoutError(
            f"{path}: not valid JSON ({error}); export the sidecar again", path=path
        ) from error
    reader = _Fields(document, path, "")
    if reader.text("magic") != MAGIC:
        raise reader.wrong("magic", f"is not {MAGIC!r}: this is not an expert sidecar")
    schema, version = reader.text("schema"), reader.integer("version", 0)
    if schema != SCHEMA or version != VERSION:
        raise reader.wrong(
            "schema",
            f"is {schema!r} version {version}; this release reads {SCHEMA!r} version {VERSION}: "
            "export the sidecar again",
        )
    if reader.text("checksum") != "crc32":
        raise reader.wrong("checksum", "must be 'crc32'")
    alignment = reader.integer("alignment", 1)
    if alignment & (alignment - 1):
        raise reader.wrong("alignment", f"is {alignment}, not a power of two")
    layers = tuple(
        _parse_layer(_Fields(item, path, f"layers[{i}]."), alignment)
        for i, item in enumerate(reader.sequence("layers"))
    )
    if not layers:
        raise reader.wrong("layers", "declares no layer")
    indices = [layer.index for layer in layers]
    if indices != sorted(set(indices)):
        raise reader.wrong("layers", "must be sorted by index, without repeats")
    return SidecarLayout(model_type=reader.text("model_type"), alignment=alignment, layers=layers)


def _parse_layer(reader: _Fields, alignment: int) -> LayerFile:
    index = reader.integer("index", 0)
    if reader.text("file") != layer_file_name(index):
        raise reader.wrong("file", f"must be {layer_file_name(index)!r}")
    packing = _Fields(reader.get("quantization"), reader.path, reader.prefix + "quantization.")
    gate, up, down = (_parse_quantization(packing, projection) for projection in PROJECTIONS)
    segments = tuple(
        _parse_segment(_Fields(item, reader.path, f"{reader.prefix}segments[{i}]."))
        for i, item in enumerate(reader.sequence("segments"))
    )
    expected = 0
    for segment in segments:
        if segment.offset != expected:
            raise reader.wrong("segments", f"{segment.name} starts at {segment.offset}, not {expected}")
        expected += segment.nbytes
    names = [segment.name for segment in segments]
    if len(set(names)) != len(names):
        raise reader.wrong("segments", "names a segment twice")
    for projection in PROJECTIONS:
        if f"{projection}.weight" not in names:
            raise reader.wrong("segments", f"lacks {projection}.weight")
    if reader.integer("record_bytes", 1) != expected:
        raise reader.wrong("record_bytes", f"is not the segments' sum, {expected}")
    stride = reader.integer("record_stride", 1)
    if stride != padded(expected, alignment):
        raise reader.wrong("record_stride", f"must be {padded(expected, alignment)}")
    num_experts = reader.integer("num_experts", 1)
    checksums = reader.sequence("checksums")
    if len(checksums) != num_experts:
        raise reader.wrong("checksums", f"has {len(checksums)} entries for {num_experts} experts")
    if any(type(value) is not int or not 0 <= value < 1 << 32 for value in checksums):
        raise reader.wrong("checksums", "holds a value that is not an unsigned 32-bit integer")
    return LayerFile(
        index=index,
        file=reader.text("file"),
        num_experts=num_experts,
        stride=stride,
        schema=RecordSchema(segments=segments, quantization=(gate, up, down)),
        checksums=tuple(checksums),
    )


def _parse_quantization(reader: _Fields, projection: str) -> Quantization | None:
    if reader.get(projection) is None:
        return None
    q = _Fields(reader.get(projection), reader.path, f"{reader.prefix}{projection}.")
    if q.text("mode") not in QUANTIZATION_MODES:
        raise q.wrong("mode", f"{q.text('mode')!r} is none of {', '.join(QUANTIZATION_MODES)}")
    return Quantization(mode=q.text("mode"), bits=q.integer("bits", 1), group_size=q.integer("group_size", 1))


def _parse_segment(reader: _Fields) -> Segment:
    name, dtype = reader.text("name"), reader.text("dtype")
    projection, _, component = name.partition(".")
    if projection not in PROJECTIONS or component not in COMPONENTS:
        raise reader.wrong("name", f"{name!r} is not a known segment")
    if dtype not in DTYPE_BYTES:
        raise reader.wrong("dtype", f"{dtype!r} is none of {', '.join(DTYPE_BYTES)}")
    shape = reader.sequence("shape")
    if not shape or len(shape) > 3 or any(type(n) is not int or not 0 < n <= 1 << 24 for n in shape):
        raise reader.wrong("shape", f"{shape} is not one to three positive extents")
    nbytes = DTYPE_BYTES[dtype]
    for extent in shape:
        nbytes *= extent
    if reader.integer("nbytes", 1) != nbytes:
        raise reader.wrong("nbytes", f"must be {nbytes} for {dtype} {shape}")
    return Segment(
        name=name, dtype=dtype, shape=tuple(shape), offset=reader.integer("offset", 0), nbytes=nbytes
    )


def check_files(layout: SidecarLayout, directory: str | os.PathLike[str]) -> None:
    """Compare every declared layer file's size with the layout.

    Raises:
        SidecarLayoutError: a file is missing, is longer, or ends inside a record (the message names the
            file, the layer and the first expert that is incomplete).
    """
    for layer in layout.layers:
        path = os.path.join(os.fspath(directory), layer.file)
        try:
            size = os.stat(path).st_size
        except OSError as error:
            raise SidecarLayoutError(
                f"{path}: layer {layer.index} is declared in {LAYOUT_NAME} but cannot be opened "
                f"({error.strerror}); export the sidecar again",
                path=path,
                field=f"layers[{layer.index}]",
            ) from error
        if size < layer.file_bytes:
            raise SidecarLayoutError(
                f"{path}: truncated: {size} of {layer.file_bytes} bytes; layer {layer.index}, expert "
                f"{size // layer.stride} and those after it are incomplete; export the sidecar again",
                path=path,
                field=f"layers[{layer.index}]",
            )
        if size > layer.file_bytes:
            raise SidecarLayoutError(
                f"{path}: {size} bytes, but layer {layer.index} with {layer.num_experts} experts has "
                f"{layer.file_bytes}; layout and file do not belong together",
                path=path,
                field=f"layers[{layer.index}]",
            )


class _Fields:
    """Typed access to one JSON object; every refusal names the file and the field."""

    __slots__ = ("_values", "path", "prefix")

    def __init__(self, values: Any, path: str, prefix: str) -> None:
        self.path, self.prefix = path, prefix
        if not isinstance(values, dict):
            where = prefix.rstrip(".") or "the document"
            raise SidecarLayoutError(f"{path}: {where} is not a JSON object", path=path, field=where)
        self._values = values

    def wrong(self, name: str, why: str) -> SidecarLayoutError:
        field = self.prefix + name
        return SidecarLayoutError(f"{self.path}: {field} {why}", path=self.path, field=field)

    def get(self, name: str) -> Any:
        if name not in self._values:
            raise self.wrong(name, "is missing")
        return self._values[name]

    def text(self, name: str) -> str:
        value = self.get(name)
        if not isinstance(value, str):
            raise self.wrong(name, "is not a string")
        return value

    def integer(self, name: str, least: int) -> int:
        value = self.get(name)
        if type(value) is not int or not least <= value < 1 << 62:
            raise self.wrong(name, f"is not an integer of at least {least}")
        return value

    def sequence(self, name: str) -> list[Any]:
        value = self.get(name)
        if not isinstance(value, list):
            raise self.wrong(name, "is not a list")
        return value
