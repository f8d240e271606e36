import pytest

from mach_store.eviction.decayed_counts import DecayedCounts


def test_a_use_counts_half_after_a_half_life_of_other_uses() -> None:
    counts = DecayedCounts([0, 1], half_life=4)
    counts.use(0, 7)
    assert counts.of[0][7] / counts.worth == 1
    for _ in range(4):
        counts.use(1, 3)
    assert counts.of[0][7] / counts.worth == pytest.approx(0.5)
    assert counts.of[1][3] / counts.worth == pytest.approx(sum(2 ** (-n / 4) for n in range(4)))


def test_counts_stay_finite_and_in_proportion_over_very_many_uses() -> None:
    # A half-life of one use doubles the worth at each: the scale is changed every 400.
    counts = DecayedCounts([0], half_life=1)
    for step in range(5000):
        counts.use(0, step % 2)
    assert counts.of[0][1] / counts.worth == pytest.approx(1 / (1 - 2**-2))
    assert counts.of[0][1] / counts.of[0][0] == pytest.approx(2)


def test_an_expert_forgotten_for_longer_than_numbers_reach_counts_nothing() -> None:
    counts = DecayedCounts([0], half_life=1)
    counts.use(0, 0)
    for _ in range(4000):
        counts.use(0, 1)
    assert counts.of[0][0] == 0
