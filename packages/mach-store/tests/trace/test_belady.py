from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mach_store.eviction import POLICIES
from mach_store.trace.bank_replay import BankReplay
from mach_store.trace.belady import BeladyReplay
from mach_store.trace.layer_steps import LayerStep


def optimum(header, slots, steps):
    replay = BeladyReplay(header)
    for step in steps:
        replay.step(step)
    return replay.least_misses(slots)


def step_of(at: int, experts, tokens: int = 1) -> LayerStep:
    distinct = sorted(set(experts))
    return LayerStep(at, tokens, tokens > 1, distinct, distinct)


def brute_force(steps: list[LayerStep], slots: int, transient: int) -> int:
    """The least misses over every choice of what the bank holds after each step.

    After a decode step it holds what the step needed, and what it held before of anything else; after a long
    one any of what it held and what was read.
    """

    @cache
    def least(at: int, held: frozenset) -> int:
        if at == len(steps):
            return 0
        step = steps[at]
        needed = frozenset((step.at, expert) for expert in step.experts)
        must = frozenset() if step.tokens >= transient else needed
        others = (held | needed) - must
        choices = [
            must | frozenset(kept)
            for count in range(min(len(others), slots - len(must)) + 1)
            for kept in combinations(sorted(others), count)
        ]
        return len(needed - held) + min(least(at + 1, choice) for choice in choices)

    return least(0, frozenset())


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_it_is_the_least_that_any_choice_of_experts_can_reach(make_header, data) -> None:
    layers = data.draw(st.integers(1, 2))
    header = make_header(layers=list(range(layers)), experts=4)
    slots = data.draw(st.integers(2 * layers, 4 * layers - 1))
    passes = data.draw(
        st.lists(
            st.tuples(
                st.integers(0, layers - 1),
                st.sets(st.integers(0, 3), min_size=1, max_size=2),
                st.sets(st.integers(0, 3), min_size=1),
                st.sampled_from([1, 1, 1, 9]),
            ),
            min_size=1,
            max_size=9,
        )
    )
    steps = [step_of(at, few if tokens == 1 else many, tokens) for at, few, many, tokens in passes]
    tally = optimum(header, (slots,), steps)
    assert tally.total.misses == brute_force(steps, slots, header.run.transient_min_tokens)
    assert tally.total.hits == sum(len(step.experts) for step in steps) - tally.total.misses


@pytest.mark.parametrize("seed", range(3))
def test_no_policy_does_better(make_header, seed) -> None:
    header = make_header(layers=[0, 1, 2], experts=16, pools=[0, 1, 0])
    random = np.random.default_rng(seed)
    steps = []
    for _ in range(200):
        tokens = int(random.choice([1, 1, 1, 1, 3, 12]))
        for at in range(3):
            weights = random.dirichlet(np.full(16, 0.3))
            chosen = random.choice(16, 2 * tokens, p=(weights + 0.01) / (weights + 0.01).sum())
            steps.append(step_of(at, chosen.tolist(), tokens))
    for slots in [(4, 2), (7, 5), (16, 8), (30, 15)]:
        least = optimum(header, slots, steps)
        for policy in POLICIES:
            replay = BankReplay(header, slots, policy)
            for step in steps:
                replay.step(step)
            assert least.total.misses <= replay.tally.total.misses
            assert sum(least.total) == sum(replay.tally.total)
    assert optimum(header, (32, 16), steps).total.misses == 0, "a whole bank is full before it serves"


def test_one_collection_serves_every_size_and_grows(make_header) -> None:
    header = make_header(layers=[0])
    replay = BeladyReplay(header)
    for experts in ([0, 1], [2, 3], [0, 1]):
        replay.step(step_of(0, experts))
    assert [replay.least_misses((slots,)).total.misses for slots in (2, 3, 4)] == [6, 5, 4]
    replay.step(step_of(0, [2, 3]))
    assert [replay.least_misses((slots,)).total.misses for slots in (2, 3, 4)] == [8, 6, 4]


def test_no_steps_are_no_misses(make_header) -> None:
    assert optimum(make_header(), (6,), []).total == (0, 0)
