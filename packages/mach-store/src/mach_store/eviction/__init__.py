"""Owns the choice of which expert leaves a bank: pure tables, no MLX, replayable on a recorded trace."""

from mach_store.eviction.eviction_policy import EvictionPolicy, Key, OrderRule, Standing
from mach_store.eviction.lfu import LfuPolicy
from mach_store.eviction.lookahead import LookaheadPolicy
from mach_store.eviction.lru import LruPolicy
from mach_store.eviction.policy_table import DEFAULT_POLICY, POLICIES, make_policy

__all__ = [
    "DEFAULT_POLICY",
    "POLICIES",
    "EvictionPolicy",
    "Key",
    "LfuPolicy",
    "LookaheadPolicy",
    "LruPolicy",
    "OrderRule",
    "Standing",
    "make_policy",
]
