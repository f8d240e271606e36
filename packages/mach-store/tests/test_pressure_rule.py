import pytest
from hypothesis import given
from hypothesis import strategies as st

from mach_store.memory_reading import CRITICAL, NORMAL, WARNING, MemoryReading
from mach_store.pressure_rule import (
    GROW_AFTER,
    GROW_EVERY,
    RESERVE_BYTES,
    BankState,
    PressureRule,
    reserve_of,
)

DECLARED, LEAST, RESERVE = 8000, 500, 100
STEP = DECLARED // 8


def rule() -> PressureRule:
    return PressureRule(declared=DECLARED, least=LEAST, reserve=RESERVE)


def reading(room: int | None, stalled: float = 0.0, level: int = NORMAL) -> MemoryReading:
    return MemoryReading(room, "MemAvailable", stalled, level)


def test_ample_room_and_a_full_bank_change_nothing() -> None:
    made = rule()
    assert all(made.decide(reading(10**6), float(now), BankState(DECLARED)) is None for now in range(100))


def test_below_the_reserve_the_bank_gives_what_makes_it_twice_the_reserve_or_a_step() -> None:
    wish = rule().decide(reading(99), 0.0, BankState(DECLARED))
    assert wish is not None and wish.budget == DECLARED - STEP
    small = PressureRule(declared=800, least=50, reserve=RESERVE)
    wish = small.decide(reading(20), 0.0, BankState(800))
    assert wish is not None and wish.budget == 800 - (2 * RESERVE - 20)
    assert "0.000 GB are left (MemAvailable)" in wish.reason


def test_shrinking_goes_on_at_every_reading_and_ends_at_one_tokens_experts() -> None:
    made, budget, sizes = rule(), DECLARED, []
    for turn in range(12):
        wish = made.decide(reading(0), turn * 0.5, BankState(budget))
        if wish is not None:
            budget = wish.budget
        sizes.append(budget)
    assert sizes[:3] == [DECLARED - STEP, DECLARED - 2 * STEP, DECLARED - 3 * STEP]
    assert sizes[-1] == LEAST
    assert made.decide(reading(0), 99.0, BankState(LEAST)) is None


def test_a_whole_bank_gives_the_arena_too_that_prompts_then_need() -> None:
    wish = rule().decide(reading(0), 0.0, BankState(DECLARED, arena=300))
    assert wish is not None and wish.budget == DECLARED - STEP - 300


def test_between_the_bounds_nothing_happens() -> None:
    made = rule()
    for room in (RESERVE, 2 * RESERVE, 2 * RESERVE + STEP - 1):
        for now in range(0, 200, 5):
            assert made.decide(reading(room), float(now), BankState(DECLARED - STEP)) is None


def test_growing_waits_and_takes_steps_and_stops_at_what_was_declared() -> None:
    made, budget, grown = rule(), LEAST, []
    for half in range(400):
        wish = made.decide(reading(10**6), half * 0.5, BankState(budget))
        if wish is not None:
            assert budget < wish.budget <= budget + STEP
            budget = wish.budget
            grown.append(half * 0.5)
    assert budget == DECLARED
    assert grown[0] == GROW_AFTER
    assert {later - earlier for earlier, later in zip(grown, grown[1:], strict=False)} == {GROW_EVERY}


def test_a_moment_of_little_room_makes_the_waiting_begin_again() -> None:
    made = rule()
    for now in range(0, 29):
        assert made.decide(reading(10**6), float(now), BankState(LEAST)) is None
    made.decide(reading(2 * RESERVE), 29.0, BankState(LEAST))
    assert all(made.decide(reading(10**6), float(now), BankState(LEAST)) is None for now in range(30, 59))
    assert made.decide(reading(10**6), 60.0, BankState(LEAST)) is not None


def test_empty_slots_count_as_taken_when_it_grows() -> None:
    made = rule()
    enough = 2 * RESERVE + STEP
    for now in range(60):
        assert made.decide(reading(enough), float(now), BankState(LEAST, unfilled=1)) is None
    made.decide(reading(enough), 60.0, BankState(LEAST))
    assert made.decide(reading(enough), 90.0, BankState(LEAST)) is not None


def test_stalls_count_where_there_is_little_room_and_not_more_often_than_their_mean() -> None:
    made = rule()
    assert made.decide(reading(10**6, stalled=80.0), 0.0, BankState(DECLARED)) is None
    wish = made.decide(reading(3 * RESERVE, stalled=12.0), 1.0, BankState(DECLARED))
    assert wish is not None and wish.budget == DECLARED - STEP
    assert "12 % of the time" in wish.reason
    assert made.decide(reading(3 * RESERVE, stalled=12.0), 2.0, BankState(wish.budget)) is None
    assert made.decide(reading(3 * RESERVE, stalled=12.0), 11.0, BankState(wish.budget)) is not None
    # And while something waits, nothing grows.
    assert all(
        made.decide(reading(10**6, stalled=2.0), 20.0 + n, BankState(LEAST)) is None for n in range(90)
    )


@pytest.mark.parametrize("level", [WARNING, CRITICAL])
def test_a_level_of_pressure_is_enough_where_room_is_not_told(level) -> None:
    made = rule()
    wish = made.decide(reading(None, level=level), 0.0, BankState(DECLARED))
    assert wish is not None and wish.budget == DECLARED - STEP
    assert f"level {level}" in wish.reason
    for now in range(1, 10):
        assert made.decide(reading(None), float(now), BankState(wish.budget)) is None
    assert made.decide(reading(None), 45.0, BankState(wish.budget)) is not None


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 3 * DECLARED), st.floats(0, 100), st.floats(0.1, 60)), max_size=60
    )
)
def test_whatever_is_read_the_bank_stays_within_its_bounds(steps) -> None:
    made, budget, now = rule(), DECLARED, 0.0
    for room, stalled, seconds in steps:
        now += seconds
        wish = made.decide(reading(room, stalled), now, BankState(budget))
        if wish is None:
            continue
        assert LEAST <= wish.budget <= DECLARED
        if wish.budget > budget:
            assert room - (wish.budget - budget) >= 2 * RESERVE, "growing never brings it near the reserve"
        else:
            assert room < RESERVE or stalled >= 10
        budget = wish.budget


def test_the_reserve_follows_the_size_of_the_machine() -> None:
    assert reserve_of(None) == reserve_of(64 << 30) == RESERVE_BYTES
    assert reserve_of(1 << 30) == 32 << 20
