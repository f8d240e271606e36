"""Lookahead asked in a replay's way: choice for choice what the policy itself chooses."""

import numpy as np
import pytest

from mach_store.eviction import LookaheadPolicy
from mach_store.trace.bank_replay import BankReplay
from mach_store.trace.layer_steps import LayerStep
from mach_store.trace.replay_order import ReplayOrder


def plain(replay: BankReplay) -> BankReplay:
    """The same with the policy itself; nothing was stepped through yet."""
    for pool in replay._pools:
        if isinstance(pool.policy, ReplayOrder):
            pool.policy = pool.policy._policy
    return replay


def steps_of(random: np.random.Generator, layers: int, experts: int, k: int, passes: int) -> list[LayerStep]:
    """Traffic with hot experts, prompts of every length among it, and passes that end early."""
    heat = random.exponential(1, (layers, experts)) ** 3 + 1e-3
    steps = []
    for number in range(passes):
        tokens = int(random.choice([1, 1, 1, 1, 1, 2, 3, 12]))
        for at in range(layers if number % 7 else int(random.integers(1, layers + 1))):
            odds = heat[at] / heat[at].sum()
            count = min(experts, max(k, int(random.integers(k, k * tokens + 1))))
            chosen = random.choice(experts, count, replace=False, p=odds).tolist()
            if tokens == 1:
                chosen = sorted(chosen[:k])
                steps.append(LayerStep(at, 1, False, chosen, chosen))
            else:
                uses = {expert: int(random.integers(1, 9)) for expert in chosen}
                hottest = sorted(chosen, key=lambda expert: (-uses[expert], expert))
                steps.append(LayerStep(at, tokens, True, sorted(chosen), hottest, uses))
    return steps


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("layers", "experts", "k", "pools"), [(1, 8, 2, [0]), (5, 12, 3, [0] * 5), (4, 10, 2, [0, 1, 0, 1])]
)
def test_every_choice_is_the_policys_own(make_header, seed, layers, experts, k, pools) -> None:
    random = np.random.default_rng(seed)
    sizes = [4096] * layers
    header = make_header(
        layers=list(range(layers)),
        experts=experts,
        top_k=k,
        pools=pools,
        record_bytes=sizes,
        slot_bytes=sizes,
    )
    members = [pools.count(number) for number in range(max(pools) + 1)]
    slots = [int(random.integers(k * count, 0.7 * experts * count)) for count in members]
    fast, slow = BankReplay(header, slots, "lookahead"), plain(BankReplay(header, slots, "lookahead"))
    assert any(isinstance(pool.policy, ReplayOrder) for pool in fast._pools)
    assert all(isinstance(pool.policy, LookaheadPolicy) for pool in slow._pools)
    for step in steps_of(random, layers, experts, k, 150):
        fast.step(step)
        slow.step(step)
        for one, other in zip(fast._pools, slow._pools, strict=True):
            assert one.table == other.table, "the same experts, in the same slots"
    fast.check()
    assert fast.tally.total == slow.tally.total
    assert fast.tally.evictions == slow.tally.evictions
    assert fast.tally.evictions + fast.tally.transient_reads > 0


def test_experts_with_the_same_chance_leave_in_the_policys_order(make_header) -> None:
    header = make_header(layers=[0, 1, 2], experts=6, top_k=2)
    fast, slow = BankReplay(header, (8,), "lookahead"), plain(BankReplay(header, (8,), "lookahead"))
    for turn in range(40):
        for at in range(3):
            pair = [turn % 6, (turn + 1 + turn // 6) % 6]
            step = LayerStep(at, 1, False, sorted(set(pair)), sorted(set(pair)))
            fast.step(step)
            slow.step(step)
            assert fast._pools[0].table == slow._pools[0].table
    assert fast.tally.evictions == slow.tally.evictions > 20
