"""Owns the scratch arena: room for a few experts at once, beside the bank, and when its memory is given back.

It knows no bank, no slots in use and no reading: who computes in it says which of its rows hold what.
"""

from __future__ import annotations

from collections.abc import Iterable

import mlx.core as mx

from mach.io.sidecar_layout import RecordSchema
from mach_store.bank_form import BankForm
from mach_store.expert_arrays import ExpertArrays


class ScratchArena:
    """Arrays for `experts` experts of each kind of record, made at their first use.

    Attributes:
        experts: experts that it holds at once, of each kind.
        reclaimed_bytes: what it has given back so far, each time counted.
    """

    def __init__(self, form: BankForm, experts: int, *, reclaim: bool) -> None:
        """An arena that takes no memory yet.

        Args:
            form: how experts lie in memory.
            experts: at least one.
            reclaim: whether `end_prompt` gives memory back.
        """
        self.experts, self.reclaimed_bytes = experts, 0
        self._form, self._reclaim, self._in_use = form, reclaim, False
        self._arrays: dict[RecordSchema, ExpertArrays] = {}

    def nbytes(self, kinds: Iterable[RecordSchema]) -> int:
        """Bytes it takes once experts of all `kinds` have been in it."""
        return sum(self._form.scratch_bytes(kind, self.experts) for kind in kinds)

    @property
    def bytes_in_use(self) -> int:
        """Bytes it takes now."""
        return sum(
            arrays.nbytes for kind, arrays in self._arrays.items() if self._in_use or self._form.narrow(kind)
        )

    def arrays(self, kind: RecordSchema) -> ExpertArrays:
        """The arrays for one kind of record."""
        if kind not in self._arrays:
            self._arrays[kind] = self._form.scratch(kind, self.experts)
        self._in_use = True
        return self._arrays[kind]

    def end_prompt(self, *, pages: bool) -> None:
        """A prompt has been processed: with `reclaim` memory goes back to the system until the next use.

        Arrays in which every pass computes (a narrow bank's) stay. No graph that is not finished refers to
        the others.

        Args:
            pages: whether pages of arrays can be given back (`page_return.refusal`); otherwise the arrays go.

        Raises:
            BankResizeError: the system refused.
        """
        if not (self._reclaim and self._in_use):
            return
        for kind in [kind for kind in self._arrays if not self._form.narrow(kind)]:
            arrays = self._arrays[kind]
            self.reclaimed_bytes += arrays.nbytes
            if pages:
                # Faster than new arrays, and it does not wait for an allocator to let go.
                arrays.release_from(0)
            else:
                del arrays, self._arrays[kind]
                mx.clear_cache()
        self._in_use = False
