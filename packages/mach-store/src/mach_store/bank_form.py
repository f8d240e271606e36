"""Owns the form that experts have in memory: as stored, or (`bf16_form`) as plain floats."""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx

from mach.io.sidecar_layout import RecordSchema
from mach_store.expert_arrays import ExpertArrays, slot_bytes
from mach_store.scatter_reader import ScatterReader


class BankForm(Protocol):
    """Makes the arrays of a bank, and says what they take."""

    @property
    def residency(self) -> str:
        """The name of the residency mode, for reports."""

    @property
    def narrow(self) -> bool:
        """Whether the bank's experts must be widened into the arena before they are computed with."""

    def slot_bytes(self, schema: RecordSchema) -> int:
        """Bytes of memory that one expert, stored as `schema`, takes in the bank."""

    def scratch_bytes(self, schema: RecordSchema, slots: int) -> int:
        """Bytes of memory that the arena for `slots` experts takes, with whatever reading needs besides."""

    def bank(self, schema: RecordSchema, slots: int) -> ExpertArrays:
        """The bank's arrays."""

    def scratch(self, schema: RecordSchema, slots: int) -> ExpertArrays:
        """The arena's arrays, which are always computed with."""


class StoredForm:
    """Experts packed as they are on disk; bfloat16 tensors are widened at the read where `compute` asks."""

    residency = "streaming"
    narrow = False

    def __init__(self, compute: mx.Dtype, reader: ScatterReader) -> None:
        """Args: compute: dtype of the activations; reader: plans the reads."""
        self._compute, self._reader = compute, reader

    def slot_bytes(self, schema: RecordSchema) -> int:
        """See `BankForm`."""
        return slot_bytes(schema, self._compute)

    def scratch_bytes(self, schema: RecordSchema, slots: int) -> int:
        """See `BankForm`."""
        return slots * slot_bytes(schema, self._compute)

    def bank(self, schema: RecordSchema, slots: int) -> ExpertArrays:
        """See `BankForm`."""
        return ExpertArrays(schema, slots, self._compute, self._reader)

    def scratch(self, schema: RecordSchema, slots: int) -> ExpertArrays:
        """See `BankForm`."""
        return self.bank(schema, slots)
