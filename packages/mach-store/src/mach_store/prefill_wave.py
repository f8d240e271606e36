"""Owns one wave of a prefill: experts that are computed together, and the slots that they are read into.

A wave lies in the bank (experts that are there, or that fill its free slots) or in a part of the scratch
arena. It knows which rows of the arena it needs, so that whoever orders the waves sees which one may be read
while another is computed.
"""

from __future__ import annotations

from collections.abc import Iterable

from mach_store.bank_cache import BankCache
from mach_store.expert_block import ExpertTensors
from mach_store.layer_bank import LayerExpertBank
from mach_store.read_ahead import Reading

_NOWHERE = range(0)


class PrefillWave:
    """Experts that are computed together: begin, finish, compute; or drop.

    Attributes:
        experts: which, in the order of their ids.
        reads: rows of the arena that reading writes.
        computes: rows of the arena that are computed with, and must stay until that is done.
    """

    def __init__(
        self, cache: BankCache, bank: LayerExpertBank, experts: Iterable[int], reads: range, computes: range
    ) -> None:
        """For the kinds of waves below."""
        self._cache, self._bank = cache, bank
        self.experts, self.reads, self.computes = sorted(experts), reads, computes

    def may_be_read_beside(self, computed: PrefillWave) -> bool:
        """Whether this wave may be read while `computed` is computed."""
        mine, theirs = self.reads, computed.computes
        return max(mine.start, theirs.start) >= min(mine.stop, theirs.stop)

    def begin(self, *, ahead: bool) -> None:
        """Begin to read; `ahead`: beside the caller, otherwise when the wave is finished."""

    def finish(self) -> tuple[ExpertTensors, list[int]]:
        """Wait for the read: what to compute with, and where each of `experts` lies in it.

        Raises:
            SidecarCorruptionError, ExpertReadError: the read failed; the bank is as it was before.
        """
        raise NotImplementedError

    def drop(self) -> None:
        """Nobody wants the wave any more, of which no more than the beginning has happened."""


class PresentWave(PrefillWave):
    """Experts that are in the bank."""

    def __init__(self, cache: BankCache, bank: LayerExpertBank, experts: Iterable[int]) -> None:
        """Args: experts: at most as many as the arena has rows, where the bank is narrow."""
        super().__init__(cache, bank, experts, _NOWHERE, _widened(cache, bank))

    def finish(self) -> tuple[ExpertTensors, list[int]]:
        """See `PrefillWave`; nothing is read."""
        return _in_bank(self._cache, self._bank, self._bank.acquire(self.experts))


class FillingWave(PrefillWave):
    """Experts that are read into free slots of the bank, to stay."""

    def __init__(self, cache: BankCache, bank: LayerExpertBank, experts: Iterable[int]) -> None:
        """Args: experts: not in the bank, which has free slots for them."""
        super().__init__(cache, bank, experts, _NOWHERE, _widened(cache, bank))
        self._slots: list[int] = []
        self._reading: Reading | None = None

    def begin(self, *, ahead: bool) -> None:
        """See `PrefillWave`."""
        self._slots = self._bank.reserve(len(self.experts))
        try:
            self._reading = self._cache.begin_read(
                self._bank, self._bank.pool.arrays, self.experts, self._slots, ahead=ahead
            )
        except BaseException:
            self._bank.pool.give_back(self._slots)
            raise

    def finish(self) -> tuple[ExpertTensors, list[int]]:
        """See `PrefillWave`."""
        assert self._reading is not None, "begun"
        reading, self._reading = self._reading, None
        try:
            reading.finish(self._bank.counters)
        except BaseException:
            reading.drop()
            self._bank.pool.give_back(self._slots)
            raise
        self._bank.keep(self.experts, self._slots)
        return _in_bank(self._cache, self._bank, dict(zip(self.experts, self._slots, strict=True)))

    def drop(self) -> None:
        """See `PrefillWave`."""
        if self._reading is not None:
            self._reading.drop()
            self._reading = None
            self._bank.pool.give_back(self._slots)


class TransientWave(PrefillWave):
    """Experts that pass through the scratch arena."""

    def __init__(self, cache: BankCache, bank: LayerExpertBank, experts: list[int], first_row: int) -> None:
        """Args: first_row: of the arena, for the first expert."""
        rows = range(first_row, first_row + len(experts))
        super().__init__(cache, bank, experts, rows, rows)
        self._reading: Reading | None = None

    def begin(self, *, ahead: bool) -> None:
        """See `PrefillWave`."""
        arena = self._cache.scratch(self._bank.layer)
        self._reading = self._cache.begin_read(self._bank, arena, self.experts, self.reads, ahead=ahead)

    def finish(self) -> tuple[ExpertTensors, list[int]]:
        """See `PrefillWave`."""
        assert self._reading is not None, "begun"
        try:
            self._reading.finish(self._bank.counters)
        except BaseException:
            self.drop()
            raise
        self._reading = None
        self._bank.count_transient(self.experts)
        return self._cache.scratch(self._bank.layer).components, list(self.reads)

    def drop(self) -> None:
        """See `PrefillWave`."""
        if self._reading is not None:
            self._reading.drop()
            self._reading = None


def _widened(cache: BankCache, bank: LayerExpertBank) -> range:
    """The rows of the arena that experts of the bank are computed in: none, unless the bank is narrow."""
    return range(cache.scratch_experts) if bank.pool.narrow else _NOWHERE


def _in_bank(
    cache: BankCache, bank: LayerExpertBank, slot_of: dict[int, int]
) -> tuple[ExpertTensors, list[int]]:
    components, where = cache.computable(bank, slot_of)
    return components, [where[expert] for expert in slot_of]
