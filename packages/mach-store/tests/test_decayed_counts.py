import pytest

from mach_store.eviction.decayed_counts import DecayedCounts


def uses(counts: DecayedCounts, expert: int) -> float:
    return counts.of[expert] / counts.worth


def test_a_use_counts_half_after_a_half_life_of_other_uses() -> None:
    counts = DecayedCounts(half_life=4)
    counts.use(7)
    assert uses(counts, 7) == 1
    for _ in range(4):
        counts.use(3)
    assert uses(counts, 7) == pytest.approx(0.5)
    assert uses(counts, 3) == pytest.approx(sum(2 ** (-n / 4) for n in range(4)))


def test_counts_stay_finite_and_in_proportion_over_very_many_uses() -> None:
    # A half-life of one use doubles the worth at each: the scale is changed every 400.
    counts = DecayedCounts(half_life=1)
    for step in range(5000):
        counts.use(step % 2)
    assert uses(counts, 1) == pytest.approx(1 / (1 - 2**-2))
    assert counts.of[1] / counts.of[0] == pytest.approx(2)


def test_an_expert_forgotten_for_longer_than_numbers_reach_counts_nothing() -> None:
    counts = DecayedCounts(half_life=1)
    counts.use(0)
    for _ in range(4000):
        counts.use(1)
    assert counts.of[0] == 0


def test_uses_in_no_order_count_as_evenly_mixed_ones() -> None:
    many, mixed = DecayedCounts(half_life=50), DecayedCounts(half_life=50)
    for counts in (many, mixed):
        counts.use(5)
    many.use_many({1: 60, 2: 30})
    for _ in range(30):
        for expert in (1, 2, 1):
            mixed.use(expert)
    assert uses(many, 5) == pytest.approx(uses(mixed, 5))
    for expert in (1, 2):
        assert uses(many, expert) == pytest.approx(uses(mixed, expert), rel=0.02)


def test_very_many_uses_at_once_stay_finite_and_leave_nothing_of_what_was_before() -> None:
    counts = DecayedCounts(half_life=2)
    counts.use(0)
    for _ in range(20):
        counts.use_many({1: 30_000, 2: 10_000})
    steady = 1 / (1 - 2**-0.5)
    assert uses(counts, 0) < 1e-15
    assert uses(counts, 1) == pytest.approx(0.75 * steady, rel=1e-3)
    assert uses(counts, 2) == pytest.approx(0.25 * steady, rel=1e-3)


def test_no_uses_change_nothing() -> None:
    counts = DecayedCounts(half_life=2)
    counts.use(0)
    before = (counts.worth, dict(counts.of))
    counts.use_many({})
    assert (counts.worth, counts.of) == before
