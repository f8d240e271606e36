"""Owns the form of `bf16_streaming`: plain floats in the bank, quantised experts dequantised at the read.

Floats stay as they are stored (bfloat16, float16 or float32): nothing is rounded. Quantised weights become
bfloat16. The block formats' values (mxfp4, mxfp8, nvfp4) are all exact in it; affine ones are computed in
float32 and rounded once.

On the CPU native kernels compute from the bank. Where stock operations do, which multiply float32 alone, the
bank still holds bfloat16, and the experts of a pass are widened into the arena before it: half the memory of
a float32 bank, for 1.5 times the time of a product. numpy widens, because MLX's own conversion takes four
times as long as the product.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
from mlx.utils import tree_flatten

from mach.io.sidecar_layout import PROJECTIONS, Quantization, RecordSchema, build_schema
from mach.preflight.expert_bytes import STAGED_EXPERTS
from mach_store.bank_form import kernels_take_schema
from mach_store.cpu_kernels import CpuKernels
from mach_store.expert_arrays import ExpertArrays, packing_of, slot_bytes
from mach_store.row_views import byte_rows, copy_row
from mach_store.scatter_reader import ScatterReader


def float_schema(schema: RecordSchema) -> RecordSchema:
    """`schema` with every quantised weight as one bfloat16 tensor."""
    packing = packing_of(schema)
    tensors: list[tuple[str, str, tuple[int, ...]]] = []
    for segment in schema.segments:
        q = packing[segment.projection]
        if q is None or segment.component == "bias":
            tensors.append((segment.name, segment.dtype, segment.shape))
        elif segment.component == "weight":
            rows, words = segment.shape
            tensors.append((segment.name, "bfloat16", (rows, words * 32 // q.bits)))
    return build_schema(tensors, dict.fromkeys(PROJECTIONS))


class Bf16Form:
    """Experts as plain floats."""

    residency = "bf16_streaming"

    def __init__(self, compute: mx.Dtype, reader: ScatterReader, kernels: CpuKernels | None = None) -> None:
        """As `StoredForm`."""
        self._compute, self._reader, self._kernels = compute, reader, kernels

    def narrow(self, schema: RecordSchema) -> bool:
        """See `BankForm`."""
        return self._compute == mx.float32 and not self.for_kernels(schema)

    def for_kernels(self, schema: RecordSchema) -> bool:
        """See `BankForm`."""
        return kernels_take_schema(float_schema(schema), self._kernels)

    def slot_bytes(self, schema: RecordSchema) -> int:
        """See `BankForm`."""
        return slot_bytes(float_schema(schema), mx.bfloat16)

    def scratch_bytes(self, schema: RecordSchema, slots: int) -> int:
        """See `BankForm`; bank and arena each stage quantised experts."""
        arena = slots * slot_bytes(float_schema(schema), self._arena_dtype(schema))
        if any(schema.quantization):
            arena += (STAGED_EXPERTS + min(STAGED_EXPERTS, slots)) * slot_bytes(schema, mx.float32)
        return arena

    def bank(self, schema: RecordSchema, slots: int) -> ExpertArrays:
        """See `BankForm`."""
        return self._arrays(schema, slots, mx.bfloat16)

    def scratch(self, schema: RecordSchema, slots: int) -> ExpertArrays:
        """See `BankForm`."""
        return self._arrays(schema, slots, self._arena_dtype(schema))

    def _arena_dtype(self, schema: RecordSchema) -> mx.Dtype:
        return mx.bfloat16 if self.for_kernels(schema) else self._compute

    def _arrays(self, schema: RecordSchema, slots: int, dtype: mx.Dtype) -> ExpertArrays:
        arrays = ExpertArrays(float_schema(schema), slots, dtype, self._reader)
        if any(schema.quantization):
            arrays.plan = DequantizingPlan(schema, arrays, self._reader)
            arrays.reads_anywhere = False
        return arrays


class DequantizingPlan:
    """A `ScatterPlan` that reads quantised experts and leaves plain floats in the slots."""

    def __init__(self, schema: RecordSchema, target: ExpertArrays, reader: ScatterReader) -> None:
        """Args: schema: the experts as stored; target: where their floats go; reader: plans the reads."""
        self._packing = packing_of(schema)
        # Scales widened to float32: products and sums of bfloat16 would be rounded twice.
        self._staged = ExpertArrays(schema, min(STAGED_EXPERTS, target.slots), mx.float32, reader)
        self._rows = {name: byte_rows(array) for name, array in tree_flatten(target.components)}
        self._dtypes = {segment.name: segment.dtype for segment in target.schema.segments}

    def read(
        self,
        slots: Sequence[int],
        fds: Sequence[int],
        offsets: Sequence[int],
        crcs: Sequence[int] | None = None,
        *,
        threads: int = 4,
        direct: bool = False,
    ) -> int:
        """As `ScatterPlan.read`; a failure names the first bad record of the whole batch."""
        done, per_record = 0, len(offsets) // len(slots)
        for first in range(0, len(slots), self._staged.slots):
            last = min(first + self._staged.slots, len(slots))
            places = slice(first * per_record, last * per_record)
            try:
                done += self._staged.plan.read(
                    list(range(last - first)),
                    fds[places],
                    offsets[places],
                    None if crcs is None else crcs[first:last],
                    threads=threads,
                    direct=direct,
                )
            except Exception as error:
                if hasattr(error, "job"):  # the readers' own failures say which record of the batch it was
                    error.job += first
                raise
            self._unpack(slots[first:last])
        return done

    def _unpack(self, slots: Sequence[int]) -> None:
        for projection, arrays in self._staged.components.items():
            q = self._packing[projection]
            parts = {component: array[: len(slots)] for component, array in arrays.items()}
            for component, array in parts.items():
                name = f"{projection}.{component}"
                if q is not None and component == "weight":
                    self._place(name, _dequantized(parts, q), slots)
                elif name in self._dtypes:  # a tensor that was not quantised; widened if it is bfloat16
                    narrow = self._dtypes[name] == "bfloat16"
                    self._place(name, array.astype(mx.bfloat16) if narrow else array, slots)

    def _place(self, name: str, array: mx.array, slots: Sequence[int]) -> None:
        """Evaluate one tensor at a time: the floats of whole experts are several times what is staged."""
        mx.eval(array)
        rows = byte_rows(array)
        for row, slot in enumerate(slots):
            copy_row(rows[row], self._rows[name][slot])


def _dequantized(parts: dict[str, mx.array], q: Quantization) -> mx.array:
    """[experts, rows, columns] in bfloat16."""
    if q.mode != "affine":
        return mx.dequantize(
            parts["weight"],
            parts["scales"],
            group_size=q.group_size,
            bits=q.bits,
            mode=q.mode,
            dtype=mx.bfloat16,
        )
    scales, biases = (parts[name].astype(mx.float32) for name in ("scales", "biases"))
    wide = mx.dequantize(parts["weight"], scales, biases, group_size=q.group_size, bits=q.bits)
    return wide.astype(mx.bfloat16)
