from hypothesis import assume, given
from hypothesis import strategies as st

from mach.io.arch_registry import REGISTRY
from mach.io.config_file import ConfigFields
from mach.preflight.kv_cache_bytes import kv_cache_bytes
from mach.preflight.memory_plan import (
    MemoryBudgets,
    MemoryNeeds,
    MemoryPlan,
    budget_problem,
    kv_bound,
    most_below,
    plan_memory,
)

GB = 10**9
NEEDS = MemoryNeeds(
    experts=8 * GB,
    least_bank=GB // 2,
    streaming=True,
    scratch=lambda experts: experts * 10_000_000,
    least_scratch=1,
    most_scratch=64,
    always_scratch=False,
    other_weights=GB,
    reserve=GB // 2,
    kv=lambda tokens: -(-tokens // 256) * 256 * 100_000,
    context=32_768,
)
CONTEXT = NEEDS.kv(NEEDS.context)


def plan(available: int | None = 24 * GB, needs: MemoryNeeds = NEEDS, **asked: int) -> MemoryPlan:
    return plan_memory(needs, MemoryBudgets(**asked), available, "MemAvailable")


def test_without_a_wish_the_bank_takes_half_and_the_context_what_it_needs_of_the_rest() -> None:
    free = plan(12 * GB)
    assert free.parts == {
        "expert cache": (12 * GB - GB - GB // 2) // 2,
        "prefill scratch": 160_000_000,
        "other weights": GB,
        "KV cache": CONTEXT,
        "reserve": GB // 2,
    }
    assert (free.tokens, free.problem, free.limit_source) == (NEEDS.context, None, "MemAvailable")
    assert plan(24 * GB).parts["expert cache"] == 8 * GB
    assert "prefill scratch" not in plan(24 * GB).parts, "a whole bank needs no arena"


def test_a_context_that_does_not_fit_is_cut_to_what_does() -> None:
    small = plan(5 * GB)
    assert small.problem is None
    assert small.tokens < NEEDS.context
    assert small.kv == NEEDS.kv(small.tokens)
    assert small.needed <= 5 * GB < small.needed - small.kv + NEEDS.kv(small.tokens + 256)


def test_under_a_cap_the_bank_takes_what_the_others_leave() -> None:
    capped = plan(total=6 * GB)
    # A quarter of what weights and reserve leave goes to the context.
    assert capped.limit_source == "--memory-gb"
    assert capped.parts["KV cache"] == NEEDS.kv(
        most_below(NEEDS.kv, (6 * GB - GB - GB // 2) // 4, NEEDS.context)
    )
    assert capped.needed == 6 * GB
    roomy = plan(40 * GB, total=20 * GB)
    assert roomy.bank == NEEDS.experts
    assert roomy.tokens == NEEDS.context


def test_a_cap_beyond_what_is_free_is_what_is_free() -> None:
    capped = plan(6 * GB, total=100 * GB)
    assert (capped.limit, capped.limit_source) == (6 * GB, "MemAvailable")
    assert capped.needed <= 6 * GB


def test_what_is_asked_for_is_what_is_planned() -> None:
    asked = plan(total=9 * GB, expert_cache=3 * GB, kv_cache=GB, prefill_scratch=55_000_000)
    assert asked.parts == {
        "expert cache": 3 * GB,
        "prefill scratch": 50_000_000,
        "other weights": GB,
        "KV cache": GB,
        "reserve": GB // 2,
    }
    assert asked.told == {
        "expert cache": "--expert-cache-gb",
        "prefill scratch": "--prefill-scratch-gb",
        "KV cache": "--kv-cache-gb",
    }
    assert asked.scratch_experts == 5
    assert asked.tokens == 9984  # 39 steps of 256 tokens; the fortieth would not fit
    assert plan(scratch_experts=9).scratch_experts == 9


def test_more_than_there_can_be_use_for_is_not_planned() -> None:
    asked = plan(60 * GB, expert_cache=50 * GB, kv_cache=9 * GB)
    assert asked.bank == NEEDS.experts
    assert asked.kv == CONTEXT


def test_a_refusal_says_what_would_help() -> None:
    assert plan(4 * GB, expert_cache=3 * GB).problem == (
        "4.69 GB do not fit into 4.00 GB (MemAvailable): lower --expert-cache-gb to 2.314 or less"
    )
    assert plan(4 * GB, expert_cache=2 * GB, total=3 * GB).problem == (
        "3.69 GB do not fit into 3.00 GB (--memory-gb): lower --expert-cache-gb to 1.314 or less, or raise "
        "--memory-gb to 3.686"
    )
    assert "leave no room for one token's experts: raise --memory-gb to 2.186" in str(plan(total=GB).problem)
    resident = NEEDS._replace(streaming=False, least_bank=NEEDS.experts, scratch=None)
    assert str(plan(4 * GB, resident).problem).endswith("(MemAvailable): use --streaming")
    assert str(plan(kv_cache=1000).problem) == (
        "--kv-cache-gb must hold the keys and values of 256 tokens: at least 0.026"
    )
    assert (
        str(plan(prefill_scratch=1000).problem) == "--prefill-scratch-gb must hold 1 experts: at least 0.01"
    )


def test_a_machine_that_says_nothing_refuses_nothing() -> None:
    unknown = plan(None)
    assert (unknown.bank, unknown.tokens, unknown.problem) == (NEEDS.experts, NEEDS.context, None)
    assert plan(None, total=GB).problem is not None


def test_the_table_adds_up() -> None:
    lines = plan(total=6 * GB, expert_cache=GB).table()
    assert lines[0] == "  expert cache         1.0000 GB  --expert-cache-gb"
    assert [line.split()[0] for line in lines] == [
        "expert",
        "prefill",
        "other",
        "KV",
        "reserve",
        "together",
        "limit",
    ]
    sizes = [float(line.split(" GB")[0].split()[-1]) for line in lines]
    assert abs(sum(sizes[:-2]) - sizes[-2]) < 0.001


SIZES = st.integers(0, 40 * GB)
ASKED = st.one_of(st.none(), st.integers(1, 30 * GB))


@given(
    available=SIZES,
    total=ASKED,
    expert_cache=ASKED,
    kv_cache=ASKED,
    prefill_scratch=st.one_of(st.none(), st.integers(1, GB)),
    streaming=st.booleans(),
    always=st.booleans(),
    experts=st.integers(1, 20 * GB),
)
def test_no_plan_without_a_problem_takes_more_than_the_limit(
    available, total, expert_cache, kv_cache, prefill_scratch, streaming, always, experts
) -> None:
    least = min(experts, GB // 3)
    needs = NEEDS._replace(experts=experts, least_bank=least, always_scratch=always)
    budgets = MemoryBudgets(total, expert_cache, prefill_scratch, kv_cache)
    if not streaming:
        needs = needs._replace(streaming=False, least_bank=experts, scratch=None, always_scratch=False)
        budgets = MemoryBudgets(total, kv_cache=kv_cache)
    made = plan_memory(needs, budgets, available, "MemAvailable")
    assert made.limit == (available if total is None else min(available, total))
    if made.problem is None and not (expert_cache is not None and made.bank < needs.least_bank):
        assert made.needed <= made.limit
        assert made.bank >= needs.least_bank
        assert 256 <= made.tokens <= needs.context
        assert needs.kv(made.tokens) <= made.kv
        if streaming and expert_cache is not None:
            assert made.bank == min(expert_cache, experts)


@given(
    total=st.integers(1, 9 * GB),
    expert_cache=ASKED,
    kv_cache=st.one_of(st.none(), st.integers(30_000_000, GB)),
)
def test_the_cap_that_a_refusal_names_is_enough(total, expert_cache, kv_cache) -> None:
    assume(expert_cache is None or expert_cache >= NEEDS.least_bank)
    refused = plan(100 * GB, total=total, expert_cache=expert_cache, kv_cache=kv_cache)
    if refused.problem is not None:
        named = float(refused.problem.rpartition("raise --memory-gb to ")[2])
        assert (
            plan(100 * GB, total=round(named * GB), expert_cache=expert_cache, kv_cache=kv_cache).problem
            is None
        )


def test_the_bound_of_keys_and_values_holds_on_the_whole_way(families) -> None:
    for family in ("qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4", "deepseek_v4"):
        adapter, config = REGISTRY[family], ConfigFields(families[family], "config.json")
        bound, most = kv_bound(adapter, config, 4), 0
        for tokens in range(1, 700, 7 if family != "deepseek_v4" else 1):
            most = max(most, kv_cache_bytes(adapter, config, tokens, 4).total)
            assert bound(tokens) >= most, (family, tokens)


@given(high=st.integers(0, 500), budget=st.integers(-5, 600))
def test_most_below_is_the_last_that_fits(high, budget) -> None:
    found = most_below(lambda n: n // 3 * 3, budget, high)
    expected = [n for n in range(high + 1) if n // 3 * 3 <= budget]
    assert found == (expected[-1] if expected else 0)


def test_budgets_are_positive_numbers() -> None:
    assert budget_problem({"--memory-gb": None, "--kv-cache-gb": 0.5}) is None
    for value in (0.0, -1.0, float("nan"), float("inf"), 1e6):
        assert budget_problem({"--kv-cache-gb": value}) == (
            f"--kv-cache-gb {value}: must be a positive number of 10⁹ bytes"
        )
