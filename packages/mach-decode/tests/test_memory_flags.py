import math

import pytest

from mach.preflight.memory_plan import MemoryBudgets
from mach_decode.errors import ResidencyError
from mach_decode.memory_flags import NO_BUDGETS, MemoryFlags
from mach_store.settings import StoreSettings

EVERYTHING = MemoryFlags(expert_cache_gb=1.0, memory_gb=4.0, prefill_scratch_gb=0.5, kv_cache_gb=0.25)


def test_gigabytes_become_bytes() -> None:
    for residency in ("streaming", "bf16_streaming"):
        assert EVERYTHING.budgets(residency, StoreSettings()) == MemoryBudgets(
            total=4 * 10**9, expert_cache=10**9, prefill_scratch=5 * 10**8, kv_cache=25 * 10**7
        )
    assert NO_BUDGETS.budgets("streaming", StoreSettings()) == MemoryBudgets()


def test_the_arena_can_be_bounded_by_number() -> None:
    settings = StoreSettings.from_environment({"LME_SCRATCH_EXPERTS": "5"})
    assert NO_BUDGETS.budgets("streaming", settings).scratch_experts == 5
    with pytest.raises(ResidencyError, match="LME_SCRATCH_EXPERTS both bound the arena"):
        EVERYTHING.budgets("streaming", settings)


@pytest.mark.parametrize(
    ("residency", "flag"), [("stacked", "--no-streaming"), ("unswapped", "--backend openai")]
)
def test_budgets_of_streaming_go_with_nothing_else(residency, flag) -> None:
    for flags in (MemoryFlags(expert_cache_gb=1.0), MemoryFlags(prefill_scratch_gb=1.0)):
        with pytest.raises(ResidencyError, match=f"cannot go with {flag}"):
            flags.budgets(residency, StoreSettings())
    kept = MemoryFlags(memory_gb=2.0, kv_cache_gb=1.0).budgets(residency, StoreSettings())
    assert kept == MemoryBudgets(total=2 * 10**9, kv_cache=10**9)


@pytest.mark.parametrize(
    "name", ["expert_cache_gb", "memory_gb", "prefill_scratch_gb", "kv_cache_gb", "wired_gb"]
)
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, 1e6])
def test_a_budget_is_a_positive_number(name, value) -> None:
    flag = "--" + name.replace("_", "-")
    with pytest.raises(ResidencyError, match=f"{flag} .*must be a positive number"):
        MemoryFlags(**{name: value}).budgets("streaming", StoreSettings())
