"""Owns the memory that experts are read into: one contiguous array per tensor of a record, slot by slot."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mach.io.sidecar_layout import PROJECTIONS, RecordSchema
from mach_store.expert_block import ExpertTensors
from mach_store.expert_kernel import Packing
from mach_store.huge_pages import use_huge_pages
from mach_store.page_return import release_rows
from mach_store.row_views import byte_rows, copy_row
from mach_store.scatter_reader import ScatterPlan, ScatterReader

DTYPES = {
    "uint8": mx.uint8,
    "uint32": mx.uint32,
    "float16": mx.float16,
    "bfloat16": mx.bfloat16,
    "float32": mx.float32,
}


def widens(dtype: str, compute: mx.Dtype) -> bool:
    """Whether a tensor of `dtype` is kept as float32 in memory for computing in `compute`.

    bfloat16 becomes float32 exactly. It is done once, at the read, because on the CPU MLX would otherwise
    convert the whole array in every product.
    """
    return dtype == "bfloat16" and compute == mx.float32


def slot_bytes(schema: RecordSchema, compute: mx.Dtype) -> int:
    """Bytes of memory that one expert of `schema` takes in a slot."""
    return sum(s.nbytes * (2 if widens(s.dtype, compute) else 1) for s in schema.segments)


def packing_of(schema: RecordSchema) -> Packing:
    """`schema`'s quantisation by projection."""
    return dict(zip(PROJECTIONS, schema.quantization, strict=True))


class ExpertArrays:
    """`slots` experts of one schema in memory.

    Attributes:
        packing: how each projection's weights are packed.
        components: projection → component → array [slots, …], e.g. `components["up_proj"]["scales"]`.
        plan: reads records into these arrays.
        segments: what a plan is made of: the array of each tensor, its bytes on disk, whether it is widened.
        huge_page_bytes: for so many of them huge pages were asked for.
        reads_anywhere: whether the plan may be used from any thread; not one that computes with MLX.
    """

    def __init__(self, schema: RecordSchema, slots: int, compute: mx.Dtype, reader: ScatterReader) -> None:
        """Allocate; the pages are touched at once, so that a budget that does not fit fails here."""
        self.schema, self.slots = schema, slots
        self.packing = packing_of(schema)
        components: dict[str, dict[str, mx.array]] = {}
        arrays, nbytes, widen = [], [], []
        for segment in schema.segments:
            wide = widens(segment.dtype, compute)
            array = mx.zeros((slots, *segment.shape), mx.float32 if wide else DTYPES[segment.dtype])
            components.setdefault(segment.projection, {})[segment.component] = array
            arrays.append(array)
            nbytes.append(segment.nbytes)
            widen.append(wide)
        mx.eval(arrays)
        self.huge_page_bytes = sum(map(use_huge_pages, arrays))
        self.components = ExpertTensors(components)
        self.nbytes = sum(array.nbytes for array in arrays)
        self.segments = (arrays, nbytes, widen)
        self.plan: ScatterPlan = reader.plan(*self.segments)
        self.reads_anywhere = True
        self._rows: list[NDArray[np.uint8]] | None = None

    @property
    def rows(self) -> list[NDArray[np.uint8]]:
        """The memory of every tensor as [slots, bytes], in the schema's order."""
        if self._rows is None:
            segments = self.schema.segments
            self._rows = [byte_rows(self.components[s.projection][s.component]) for s in segments]
        return self._rows

    def move(self, source: int, target: int) -> None:
        """Copy the expert in the slot `source` over that in `target`."""
        for rows in self.rows:
            rows[target] = rows[source]

    def release_from(self, slots: int) -> None:
        """Give the memory behind the first `slots` slots back; they may be read into again later.

        Raises:
            BankResizeError: the system refused.
        """
        for parts in self.components.values():
            for array in parts.values():
                release_rows(array, slots)

    def copy_from(self, other: ExpertArrays, slots: Sequence[int]) -> None:
        """Copy the experts in `slots` of `other` into this one's first slots, widened where this one is."""
        for mine, theirs in zip(self.rows, other.rows, strict=True):
            for row, slot in enumerate(slots):
                copy_row(theirs[slot], mine[row])
