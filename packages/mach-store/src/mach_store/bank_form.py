"""Owns the form that experts have in memory: as stored, or (`bf16_form`) as plain floats.

Stock MLX operations on the CPU want float32 beside packed weights, and multiply nothing else otherwise.
Native kernels take bfloat16 as it is, with the same bits: then nothing is widened.
"""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx

from mach.io.kernel_packings import kernels_take
from mach.io.sidecar_layout import RecordSchema
from mach_store.cpu_kernels import CpuKernels
from mach_store.expert_arrays import ExpertArrays, slot_bytes
from mach_store.scatter_reader import ScatterReader


class BankForm(Protocol):
    """Makes the arrays of a bank, and says what they take."""

    @property
    def residency(self) -> str:
        """The name of the residency mode, for reports."""

    def narrow(self, schema: RecordSchema) -> bool:
        """Whether the bank's experts must be widened into the arena before they are computed with."""

    def for_kernels(self, schema: RecordSchema) -> bool:
        """Whether the arrays suit native kernels alone."""

    def slot_bytes(self, schema: RecordSchema) -> int:
        """Bytes of memory that one expert, stored as `schema`, takes in the bank."""

    def scratch_bytes(self, schema: RecordSchema, slots: int) -> int:
        """Bytes of memory that the arena for `slots` experts takes, with whatever reading needs besides."""

    def bank(self, schema: RecordSchema, slots: int) -> ExpertArrays:
        """The bank's arrays."""

    def scratch(self, schema: RecordSchema, slots: int) -> ExpertArrays:
        """The arena's arrays, which are always computed with."""


def kernels_take_schema(schema: RecordSchema, kernels: CpuKernels | None) -> bool:
    """Whether `kernels` compute with experts of `schema` just as they are stored."""
    if kernels is None or not kernels.native:
        return False
    dtypes = {(segment.projection, segment.component): segment.dtype for segment in schema.segments}
    paired = all(
        dtypes.get((projection, "biases"), dtype) == dtype
        for (projection, component), dtype in dtypes.items()
        if component == "scales"
    )
    return paired and kernels_take(schema.quantization, dtypes.values())


class StoredForm:
    """Experts packed as they are on disk; bfloat16 is widened at the read where stock operations want it."""

    residency = "streaming"

    def __init__(self, compute: mx.Dtype, reader: ScatterReader, kernels: CpuKernels | None = None) -> None:
        """A form for one way of computing.

        Args:
            compute: dtype of the activations.
            reader: plans the reads.
            kernels: what computes; stock operations if not given.
        """
        self._compute, self._reader, self._kernels = compute, reader, kernels

    def narrow(self, schema: RecordSchema) -> bool:
        """See `BankForm`."""
        return False

    def for_kernels(self, schema: RecordSchema) -> bool:
        """See `BankForm`."""
        return kernels_take_schema(schema, self._kernels)

    def slot_bytes(self, schema: RecordSchema) -> int:
        """See `BankForm`."""
        return slot_bytes(schema, self._wanted(schema))

    def scratch_bytes(self, schema: RecordSchema, slots: int) -> int:
        """See `BankForm`."""
        return slots * self.slot_bytes(schema)

    def bank(self, schema: RecordSchema, slots: int) -> ExpertArrays:
        """See `BankForm`."""
        return ExpertArrays(schema, slots, self._wanted(schema), self._reader)

    def _wanted(self, schema: RecordSchema) -> mx.Dtype:
        return mx.bfloat16 if self.for_kernels(schema) else self._compute

    def scratch(self, schema: RecordSchema, slots: int) -> ExpertArrays:
        """See `BankForm`."""
        return self.bank(schema, slots)
