import msgspec
import numpy as np
import pytest

from mach_store.eviction import POLICIES
from mach_store.trace.bank_replay import BankReplay
from mach_store.trace.bank_tally import DECODE, PREFILL, Phase
from mach_store.trace.layer_steps import LayerStep


def decode(at: int, *experts: int) -> LayerStep:
    return LayerStep(at, 1, False, sorted(experts), sorted(experts))


def prompt(at: int, *hottest_first: int, tokens: int = 9) -> LayerStep:
    routes = {expert: len(hottest_first) - place for place, expert in enumerate(hottest_first)}
    return LayerStep(at, tokens, True, sorted(hottest_first), list(hottest_first), routes)


def run(header, slots, steps, policy="lru") -> BankReplay:
    replay = BankReplay(header, slots, policy)
    for step in steps:
        replay.step(step)
        replay.check()
    return replay


def test_decoding_reads_what_is_missing_and_gives_up_the_oldest(make_header) -> None:
    header = make_header(layers=[0])
    steps = [decode(0, 1, 2), decode(0, 2, 3), decode(0, 1, 4)]
    replay = run(header, (3,), steps)
    assert replay.tally.total == Phase(hits=2, misses=4)
    assert replay.tally.evictions == 1
    replay = run(header, (2,), steps)
    assert replay.tally.total == Phase(hits=1, misses=5)
    assert replay.tally.evictions == 3


def test_a_long_pass_fills_free_slots_with_the_hottest_and_leaves_the_rest_alone(make_header) -> None:
    header = make_header(layers=[0])
    replay = run(header, (3,), [decode(0, 0, 1), prompt(0, 7, 6, 1, 5)])
    assert replay.tally.phase(PREFILL) == Phase(hits=1, misses=3)
    assert replay.tally.transient_reads == 2
    replay.step(decode(0, 0, 7))
    assert replay.tally.phase(DECODE) == Phase(hits=2, misses=2), "7 is in, 0 still is"
    assert replay.tally.evictions == 0


def test_a_long_pass_takes_no_more_than_its_layers_share(make_header) -> None:
    replay = run(make_header(layers=[0, 1]), (6,), [prompt(0, 0, 1, 2, 3, 4)])
    assert replay.tally.transient_reads == 2
    assert replay.tally.total.misses == 5


def test_a_short_pass_with_more_experts_than_its_share_goes_past_the_bank(make_header) -> None:
    header = make_header(layers=[0, 1])
    few, many = prompt(0, 0, 1, 2, tokens=2), prompt(0, 0, 1, 2, 3, tokens=3)
    assert run(header, (6,), [few]).tally.transient_reads == 0
    assert run(header, (6,), [many]).tally.transient_reads == 1


def test_a_narrow_bank_bounds_a_pass_by_the_arena(make_header) -> None:
    run_of = msgspec.structs.replace(make_header().run, narrow=[True], scratch_experts=2)
    header = make_header(layers=[0], run=run_of)
    steps = [prompt(0, 0, 1, 2, tokens=2)]
    assert run(header, (3,), steps).tally.transient_reads == 0, "there is room for all three"
    filled = [decode(0, 5, 6), decode(0, 7, 4), prompt(0, 0, 1, 2, tokens=2)]
    assert run(header, (3,), filled).tally.transient_reads == 3
    assert run(make_header(layers=[0]), (3,), filled).tally.transient_reads == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_a_whole_bank_is_full_before_it_serves(make_header, policy) -> None:
    header = make_header(layers=[0, 1])
    replay = run(header, (16,), [prompt(0, *range(8)), decode(1, 2, 3)], policy)
    assert replay.tally.total == Phase(hits=10, misses=0)
    part = run(header, (15,), [prompt(0, *range(8)), decode(1, 2, 3)], policy)
    assert part.tally.total.misses == 10


def test_pools_do_not_share_slots(make_header) -> None:
    header = make_header(layers=[0, 1], pools=[0, 1])
    steps = [decode(0, 0, 1), decode(1, 0, 1), decode(0, 2, 3), decode(1, 0, 1)]
    tally = run(header, (2, 2), steps).tally
    assert tally.hits == [[0, 0], [0, 2]]
    assert tally.misses == [[0, 4], [0, 2]]
    assert tally.bytes_read([10, 100], DECODE) == 240
    assert tally.bytes_read([10, 100], PREFILL) == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_any_steps_keep_the_pools_consistent(make_header, policy) -> None:
    header = make_header(layers=[0, 1, 2], pools=[0, 1, 0])
    random = np.random.default_rng(3)
    steps = []
    for _ in range(150):
        for at in range(3):
            count = int(random.choice([2, 2, 2, 4, 7]))
            chosen = random.choice(8, count, replace=False).tolist()
            steps.append(decode(at, *chosen) if count == 2 else prompt(at, *chosen, tokens=count))
    tally = run(header, (5, 3), steps, policy).tally
    assert tally.total.hits + tally.total.misses == sum(len(step.experts) for step in steps)
