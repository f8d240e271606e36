"""Owns the turning of a source checkpoint's experts into records, one expert in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np

from mach.io.arch_adapter import MoeArchAdapter
from mach.io.inspection import CheckpointInspection, ExpertTensorNames
from mach.io.quantization import BLOCK_MODES
from mach.io.safetensors_header import TensorEntry
from mach.io.sidecar_layout import PROJECTIONS, Quantization, RecordSchema, build_schema
from mach_store.errors import SidecarExportError
from mach_store.stacked_source import DTYPE_NAMES, stacked_schemas

Record = Sequence[bytes | memoryview]
_FLOATS = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}
_NUMPY = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How experts shall be packed; None leaves the choice to the family, or to what is packed already."""

    bits: int
    group_size: int | None
    mode: str | None

    def complete(self, adapter: MoeArchAdapter) -> Quantization:
        """With the defaults of `adapter`'s family, and those of the block modes, which have one size each."""
        mode = self.mode or adapter.default_mode
        default = BLOCK_MODES[mode][1] if mode in BLOCK_MODES else adapter.default_group_size
        return Quantization(mode=mode, bits=self.bits, group_size=self.group_size or default)


class ExpertRecords(Protocol):
    """A source of records: what a layer's records look like, and their bytes."""

    @property
    def schemas(self) -> Mapping[int, RecordSchema]:
        """For each MoE layer, by model index, the tensors of one expert."""

    @property
    def num_experts(self) -> int:
        """Experts per layer."""

    def records(self, layer: int, experts: Sequence[int] | None = None) -> Iterator[Record]:
        """Each expert's segments, in the order of `experts`, the source's numbers; None means all."""


def open_records(inspection: CheckpointInspection, packing: Packing | None) -> ExpertRecords:
    """The experts of a checkpoint as records.

    Args:
        inspection: of a checkpoint with the stacked or per-expert layout.
        packing: pack plain floats so, and accept packed ones only if they are so; None keeps the bytes as
            they are.

    Raises:
        SidecarExportError: the layout holds no experts that can be read one by one, or they cannot be packed
            as wanted.
    """
    if inspection.layout == "stacked":
        return packed_as_wanted(inspection, StackedRecords(inspection), packing)
    if inspection.layout == "per_expert":
        plain = PerExpertRecords(inspection)
        return plain if packing is None else QuantizedRecords(plain, packing.complete(inspection.adapter))
    raise SidecarExportError(
        f"{inspection.directory}: experts cannot be exported from the {inspection.layout} layout "
        f"({inspection.layout_reason}); a stacked or per-expert checkpoint is needed"
    )


def packed_as_wanted(
    inspection: CheckpointInspection, stored: ExpertRecords, packing: Packing | None
) -> ExpertRecords:
    """`stored` itself, or packed if it is plain floats and `packing` asks for it.

    Raises:
        SidecarExportError: it is packed otherwise already, or cannot be packed so.
    """
    if packing is None:
        return stored
    if any(q is not None for schema in stored.schemas.values() for q in schema.quantization):
        _require_same(inspection, stored, packing)
        return stored
    return QuantizedRecords(stored, packing.complete(inspection.adapter))


def _require_same(inspection: CheckpointInspection, stored: ExpertRecords, wanted: Packing) -> None:
    for schema in stored.schemas.values():
        for q in schema.quantization:
            if q is None:
                continue
            same = Packing(
                bits=q.bits,
                group_size=wanted.group_size and q.group_size,
                mode=wanted.mode and q.mode,
            )
            if same != wanted:
                raise SidecarExportError(
                    f"{inspection.directory}: the experts are already packed ({q.mode}, {q.bits} bits, "
                    f"groups of {q.group_size}) and cannot be packed otherwise: export them as they are, or "
                    "convert the original checkpoint"
                )


class StackedRecords:
    """Records out of axis-0 stacked tensors, bytes unchanged."""

    def __init__(self, inspection: CheckpointInspection) -> None:
        """Read nothing yet."""
        self.schemas, self.num_experts = stacked_schemas(inspection)
        self._inspection = inspection

    def records(self, layer: int, experts: Sequence[int] | None = None) -> Iterator[Record]:
        """See `ExpertRecords`."""
        schema = self.schemas[layer]
        table = self._inspection.stacked[layer]
        entries = [table[segment.projection][segment.component] for segment in schema.segments]
        with _Files() as files:
            for expert in range(self.num_experts) if experts is None else experts:
                yield [
                    files.read(entry.file, entry.start + expert * segment.nbytes, segment.nbytes)
                    for entry, segment in zip(entries, schema.segments, strict=True)
                ]


class PerExpertRecords:
    """Records out of raw checkpoints that have one tensor per expert and projection."""

    def __init__(self, inspection: CheckpointInspection) -> None:
        """Find every expert's tensors by name.

        Raises:
            SidecarExportError: a tensor is quantised in a form that is not plain floats, or has a bias.
        """
        if inspection.adapter.has_expert_bias:
            raise SidecarExportError(
                f"{inspection.directory}: {inspection.adapter.model_type}'s experts have biases, which are "
                "not read from the per-expert layout: make an MLX checkpoint first, with mlx_lm.convert"
            )
        names = ExpertTensorNames(inspection.adapter)
        self._entries: dict[tuple[int, int, str], TensorEntry] = {}
        for name, entry in inspection.tensors.items():
            place = names.place(name)
            if place is None:
                continue
            if place.component != "weight" or entry.dtype not in _FLOATS:
                raise SidecarExportError(f"{entry.file}: {name} ({entry.dtype}) is not a plain float weight")
            self._entries[place.layer, place.expert, place.projection] = entry
        self.num_experts = inspection.shape.num_experts
        self.schemas = {}
        for layer in inspection.shape.moe_layers:
            first = [self._entries[layer, 0, projection] for projection in PROJECTIONS]
            self.schemas[layer] = build_schema(
                [
                    (f"{projection}.weight", DTYPE_NAMES[entry.dtype], entry.shape)
                    for projection, entry in zip(PROJECTIONS, first, strict=True)
                ],
                dict.fromkeys(PROJECTIONS),
            )

    def records(self, layer: int, experts: Sequence[int] | None = None) -> Iterator[Record]:
        """See `ExpertRecords`."""
        schema = self.schemas[layer]
        with _Files() as files:
            for expert in range(self.num_experts) if experts is None else experts:
                record = []
                for segment in schema.segments:
                    entry = self._entries[layer, expert, segment.projection]
                    if entry.shape != segment.shape or DTYPE_NAMES[entry.dtype] != segment.dtype:
                        raise SidecarExportError(
                            f"{entry.file}: layer {layer}, expert {expert}, {segment.projection} is "
                            f"{entry.dtype} {list(entry.shape)}, unlike expert 0"
                        )
                    record.append(files.read(entry.file, entry.start, entry.nbytes))
                yield record


class QuantizedRecords:
    """Another source's plain-float records, packed with `mx.quantize`."""

    def __init__(self, plain: ExpertRecords, q: Quantization) -> None:
        """Work out the packed record from the first layer's shapes.

        Raises:
            SidecarExportError: a width is not a multiple of the group size, or MLX cannot pack so.
        """
        self._plain, self._q = plain, q
        self.num_experts = plain.num_experts
        self.schemas = {}
        for layer, schema in plain.schemas.items():
            tensors: list[tuple[str, str, tuple[int, ...]]] = []
            for segment in schema.segments:
                if segment.component != "weight":
                    tensors.append((segment.name, segment.dtype, segment.shape))
                    continue
                rows, columns = segment.shape
                if columns % q.group_size:
                    raise SidecarExportError(
                        f"layer {layer}: {segment.projection} has {columns} inputs, not a multiple of the "
                        f"group size {q.group_size}"
                    )
                try:
                    packed = self._pack(mx.zeros((1, columns), mx.bfloat16))
                except ValueError as error:
                    raise SidecarExportError(
                        f"experts cannot be packed with mode {q.mode}, {q.bits} bits, groups of "
                        f"{q.group_size}: {error}"
                    ) from error
                for component, array in packed.items():
                    dtype = str(array.dtype).removeprefix("mlx.core.")
                    tensors.append((f"{segment.projection}.{component}", dtype, (rows, array.shape[-1])))
            self.schemas[layer] = build_schema(tensors, dict.fromkeys(PROJECTIONS, q))

    def records(self, layer: int, experts: Sequence[int] | None = None) -> Iterator[Record]:
        """See `ExpertRecords`."""
        schema = self._plain.schemas[layer]
        for record in self._plain.records(layer, experts):
            packed: list[bytes | memoryview] = []
            for segment, data in zip(schema.segments, record, strict=True):
                if segment.component != "weight":
                    packed.append(data)
                    continue
                weight = _array(segment.dtype, segment.shape, data)
                packed.extend(_bytes_of(array) for array in self._pack(weight).values())
            yield packed

    def _pack(self, weight: mx.array) -> dict[str, mx.array]:
        q = self._q
        # bfloat16 scales: f32 ones would cost half a bit per weight and gain nothing.
        parts = mx.quantize(weight.astype(mx.bfloat16), q.group_size, q.bits, mode=q.mode)
        return dict(zip(("weight", "scales", "biases"), parts, strict=False))


def _array(dtype: str, shape: tuple[int, ...], data: bytes | memoryview) -> mx.array:
    name = next(short for short, long in DTYPE_NAMES.items() if long == dtype)
    plain = mx.array(np.frombuffer(data, _NUMPY[name]).reshape(shape))
    return plain.view(mx.bfloat16) if name == "BF16" else plain


def _bytes_of(array: mx.array) -> memoryview:
    plain = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return np.array(plain).data.cast("B")


class _Files:
    """Descriptors of the source's files, opened once."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])

    def read(self, path: str, offset: int, size: int) -> bytes:
        if path not in self._fds:
            self._fds[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        pieces = []
        while size:
            piece = os.pread(self._fds[path], size, offset)
            if not piece:
                raise SidecarExportError(f"{path}: ends at {offset}, {size} bytes early")
            pieces.append(piece)
            offset, size = offset + len(piece), size - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
