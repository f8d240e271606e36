"""Owns the packing of plain-float records with `mx.quantize`, one expert at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mach.io.arch_adapter import MoeArchAdapter
from mach.io.quantization import BLOCK_MODES
from mach.io.sidecar_layout import PROJECTIONS, Quantization, RecordSchema, build_schema
from mach_store.errors import SidecarExportError
from mach_store.sidecar.record import ExpertRecords, Record

_NUMPY = {"bfloat16": np.uint16, "float16": np.float16, "float32": np.float32}


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
        group_size = default if self.group_size is None else self.group_size
        return Quantization(mode=mode, bits=self.bits, group_size=group_size)

    def allows(self, q: Quantization) -> bool:
        """Whether weights that are packed as `q` already are what is wanted."""
        return q.bits == self.bits and self.group_size in (None, q.group_size) and self.mode in (None, q.mode)


class PackedRecords:
    """Another source's records with every plain-float projection packed; packed ones must be so already."""

    def __init__(
        self, directory: str, plain: ExpertRecords, packing: Packing, adapter: MoeArchAdapter
    ) -> None:
        """Work out the packed records from the plain ones' shapes.

        Raises:
            SidecarExportError: the group size is not positive, a projection is packed otherwise already, a
                width is not a multiple of the group size, or MLX cannot pack so.
        """
        self._plain, self._q = plain, packing.complete(adapter)
        if self._q.group_size < 1:
            raise SidecarExportError(f"--group-size {self._q.group_size}: must be at least 1")
        self.num_experts = plain.num_experts
        self.schemas: dict[int, RecordSchema] = {}
        for layer, schema in plain.schemas.items():
            for q in schema.quantization:
                if q is not None and not packing.allows(q):
                    raise SidecarExportError(
                        f"{directory}: the experts are already packed ({q.mode}, {q.bits} bits, groups of "
                        f"{q.group_size}) and cannot be packed otherwise: export them as they are, or "
                        "convert the original checkpoint"
                    )
            self.schemas[layer] = self._packed_schema(layer, schema)

    def records(self, layer: int, experts: Sequence[int] | None = None) -> Iterator[Record]:
        """See `ExpertRecords`."""
        schema = self._plain.schemas[layer]
        plain = _plain_projections(schema)
        for record in self._plain.records(layer, experts):
            packed: list[bytes | memoryview] = []
            for segment, data in zip(schema.segments, record, strict=True):
                if segment.component == "weight" and segment.projection in plain:
                    weight = _array(segment.dtype, segment.shape, data)
                    packed.extend(_bytes_of(array) for array in self._pack(weight).values())
                else:
                    packed.append(data)
            yield packed

    def _packed_schema(self, layer: int, schema: RecordSchema) -> RecordSchema:
        q, plain = self._q, _plain_projections(schema)
        tensors: list[tuple[str, str, tuple[int, ...]]] = []
        for segment in schema.segments:
            if segment.component != "weight" or segment.projection not in plain:
                tensors.append((segment.name, segment.dtype, segment.shape))
                continue
            rows, columns = segment.shape
            if columns % q.group_size:
                raise SidecarExportError(
                    f"layer {layer}: {segment.projection} has {columns} inputs, not a multiple of the group "
                    f"size {q.group_size}: give a smaller --group-size, or keep the experts as they are"
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
        stored = dict(zip(PROJECTIONS, schema.quantization, strict=True))
        return build_schema(tensors, {p: q if p in plain else stored[p] for p in PROJECTIONS})

    def _pack(self, weight: mx.array) -> dict[str, mx.array]:
        q = self._q
        # bfloat16 scales: f32 ones would cost half a bit per weight and gain nothing.
        parts = mx.quantize(weight.astype(mx.bfloat16), q.group_size, q.bits, mode=q.mode)
        return dict(zip(("weight", "scales", "biases"), parts, strict=False))


def _plain_projections(schema: RecordSchema) -> frozenset[str]:
    return frozenset(p for p, q in zip(PROJECTIONS, schema.quantization, strict=True) if q is None)


def _array(dtype: str, shape: tuple[int, ...], data: bytes | memoryview) -> mx.array:
    plain = mx.array(np.frombuffer(data, _NUMPY[dtype]).reshape(shape))
    return plain.view(mx.bfloat16) if dtype == "bfloat16" else plain


def _bytes_of(array: mx.array) -> memoryview:
    plain = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return np.array(plain).data.cast("B")
