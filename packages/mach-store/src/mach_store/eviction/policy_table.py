"""Owns which policies there are and their constants, chosen on recorded routes.

docs/eviction-and-prefetch.md has the figures and the commands.
"""

from __future__ import annotations

from collections.abc import Mapping

from mach_store.eviction.eviction_policy import EvictionPolicy
from mach_store.eviction.lfu import LfuPolicy
from mach_store.eviction.lookahead import LookaheadPolicy
from mach_store.eviction.lru import LruPolicy

POLICIES = ("lru", "lfu", "lookahead")
DEFAULT_POLICY = "lookahead"

LFU_USES_PER_EXPERT = 2
"""LFU's half-life, in uses of a layer for each of its experts: so many an expert has in it on average,
however many there are. Fewer, and chance decides; more, and what a text is about is seen too late."""
LONG_USES_PER_EXPERT = 8
"""Lookahead's long memory, likewise; longer, because the short one sees what is new."""
SHORT_TOKENS = 2
"""Lookahead's short memory: half-life in tokens."""
SHORT_SHARE = 0.35
"""What the short memory says counts for so much."""


def make_policy(name: str, floors: Mapping[int, int], *, experts: float, top_k: float) -> EvictionPolicy:
    """The policy `name`, one of POLICIES.

    Args:
        name: the caller has checked it.
        floors: for each layer, the number of experts it keeps while others can give.
        experts: of one layer; of those that the policy hears of, where that is a sample.
        top_k: those of them that a token uses.
    """
    if name == LruPolicy.name:
        return LruPolicy(floors)
    if name == LfuPolicy.name:
        return LfuPolicy(floors, LFU_USES_PER_EXPERT * experts)
    assert name == LookaheadPolicy.name, f"{name} is one of POLICIES"
    return LookaheadPolicy(
        floors,
        top_k=top_k,
        half_life=LONG_USES_PER_EXPERT * experts,
        short_half_life=SHORT_TOKENS * top_k,
        short_share=SHORT_SHARE,
    )
