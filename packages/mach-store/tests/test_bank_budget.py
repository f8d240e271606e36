import pytest
from hypothesis import given
from hypothesis import strategies as st

from mach_store.bank_budget import BankBudget, RecordGroup
from mach_store.errors import MemoryBudgetError


@given(
    groups=st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 6)), min_size=1, max_size=4),
    experts=st.integers(1, 12),
    data=st.data(),
)
def test_slots_never_cost_more_than_the_budget_and_a_larger_one_never_has_fewer(
    groups, experts, data
) -> None:
    top_k = data.draw(st.integers(1, experts))
    # Any keys will do: the schemas are not looked into.
    kinds = {str(n): RecordGroup(*group) for n, group in enumerate(groups)}
    sizes = BankBudget(kinds, experts=experts, top_k=top_k)  # type: ignore[arg-type]
    before = dict.fromkeys(kinds, 0)
    for budget in sorted(
        data.draw(st.sets(st.integers(sizes.least_bytes, sizes.total_bytes + 9), min_size=1))
    ):
        slots = sizes.slots(budget)
        assert sum(slots[kind] * group.slot_bytes for kind, group in kinds.items()) <= budget
        for kind, group in kinds.items():
            assert top_k * group.layers <= slots[kind] <= experts * group.layers
            assert slots[kind] >= before[kind]
        before = slots


def test_the_whole_budget_holds_every_expert() -> None:
    sizes = BankBudget({"a": RecordGroup(10, 3), "b": RecordGroup(7, 1)}, experts=5, top_k=2)  # type: ignore[dict-item]
    assert (sizes.least_bytes, sizes.total_bytes) == (74, 185)
    assert sizes.slots(185) == {"a": 15, "b": 5}
    assert sizes.slots(74) == {"a": 6, "b": 2}
    with pytest.raises(MemoryBudgetError, match="at least 7.4e-08"):
        sizes.slots(73)
