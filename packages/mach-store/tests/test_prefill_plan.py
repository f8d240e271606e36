from types import SimpleNamespace

import pytest

from mach_store.prefill_plan import prefill_plan

HOTTEST_FIRST = [9, 2, 7, 4, 1, 8]


def pool(*, present=(), free=0, share=8, occupancy=0, narrow=False):
    return SimpleNamespace(
        table={(3, expert): 0 for expert in present},
        free=free, share=share, occupancy={3: occupancy}, narrow=narrow,
    )  # fmt: skip


def test_present_ones_stay_and_the_hottest_of_the_others_fill_free_slots() -> None:
    plan = prefill_plan(pool(present=[7, 9], free=2), 3, HOTTEST_FIRST, 8)
    assert plan.present == [[7, 9]]
    assert plan.filling == [[2, 4]]
    assert plan.past == [1, 8]


@pytest.mark.parametrize(("free", "occupancy", "filled"), [(0, 0, 0), (9, 6, 2), (9, 9, 0), (1, 0, 1)])
def test_no_more_are_filled_than_slots_are_free_and_the_share_allows(free, occupancy, filled) -> None:
    plan = prefill_plan(pool(free=free, occupancy=occupancy), 3, HOTTEST_FIRST, 8)
    assert sum(map(len, plan.filling)) == filled
    assert plan.past == HOTTEST_FIRST[filled:]


def test_reads_come_in_halves_of_the_arena_and_a_narrow_bank_in_arenas() -> None:
    wide = prefill_plan(pool(present=[1, 2, 8], free=3), 3, HOTTEST_FIRST, 3)
    assert (wide.present, wide.filling) == ([[1, 2, 8]], [[7, 9], [4]])
    narrow = prefill_plan(pool(present=[1, 2, 8], free=3, narrow=True), 3, HOTTEST_FIRST, 2)
    assert (narrow.present, narrow.filling) == ([[1, 2], [8]], [[9], [7], [4]])
