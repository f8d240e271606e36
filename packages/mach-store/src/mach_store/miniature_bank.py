"""Owns one simulated bank of keys without experts: which of them it would hold, by the engine's own policy.

It knows neither where routes come from nor what a hit is worth.
"""

from __future__ import annotations

from collections.abc import Sequence

from mach_store.eviction import EvictionPolicy, Key


class MiniatureBank:
    """What `LayerExpertBank` and `ExpertPool` decide about a bank of `slots` slots, without its memory.

    Attributes:
        slots: keys that it holds at most.
        held: those that it holds.
    """

    def __init__(self, slots: int, policy: EvictionPolicy) -> None:
        """An empty bank. Args: policy: this bank's alone."""
        self.slots = slots
        self.held: set[Key] = set()
        self._policy = policy

    def use(self, keys: Sequence[Key]) -> int:
        """One layer of one pass needs `keys` (distinct); returns how many were missing.

        As in a real bank, none of them is evicted for another of them. Where the bank is too small for all of
        them at once, which a real one never is, what finds no room is missing again the next time.
        """
        held, policy = self.held, self._policy
        missing = []
        for key in keys:
            if key in held:
                policy.touch(key)
            else:
                missing.append(key)
        if missing:
            excess = len(held) + len(missing) - self.slots
            for victim in policy.candidates(excess, keys) if excess > 0 else ():
                policy.remove(victim)
                held.remove(victim)
            for key in missing[: self.slots - len(held)]:
                held.add(key)
                policy.insert(key)
        return len(missing)

    def check(self) -> None:
        """Raise AssertionError when it holds too much, or its policy knows other keys; for tests."""
        assert len(self.held) <= self.slots
        victim = self._policy.victim(())
        assert victim in self.held if self.held else victim is None
