"""Owns the division of memory among the engine's parts: what was asked for, what follows, does it fit.

Loading allocates by this plan and `mach check` reports it, so that the two cannot disagree. It is arithmetic
alone: sizes come from whoever knows them, and no machine is looked at. `docs/memory.md` has it in words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from mach.io.arch_adapter import MoeArchAdapter
from mach.io.config_file import ConfigFields
from mach.preflight.kv_cache_bytes import KV_STEP, kv_cache_bytes

SCRATCH_EXPERTS = 16
"""Experts that the arena of a long prompt holds at once, unless it was asked for otherwise."""
TRANSIENT_MIN_TOKENS = 32
"""From so many tokens on, a pass goes past the bank through that arena, unless it was asked for otherwise."""
KV_SHARE = 4
"""Under a cap, a context may at first take one part in so many of what weights and reserve leave."""
_SEARCH = 128
"""Tokens over which the open groups of a compressed cache come and go."""


class MemoryBudgets(NamedTuple):
    """What was asked for, in bytes; None is left to the plan.

    Attributes:
        total: `--memory-gb`, everything together.
        expert_cache: `--expert-cache-gb`.
        prefill_scratch: `--prefill-scratch-gb`.
        kv_cache: `--kv-cache-gb`, prompts and answers together.
        scratch_experts: `LME_SCRATCH_EXPERTS`, the arena by the number of its experts.
    """

    total: int | None = None
    expert_cache: int | None = None
    prefill_scratch: int | None = None
    kv_cache: int | None = None
    scratch_experts: int | None = None


class MemoryNeeds(NamedTuple):
    """What a checkpoint takes in one residency, in bytes.

    Attributes:
        experts: every routed expert in memory; 0 where they are not apart from the other weights.
        least_bank: one token's experts; as `experts` where all stay in memory.
        streaming: whether there is a bank, of which a part of the experts is enough.
        scratch: experts → the arena for so many; None where there is none.
        least_scratch: experts that the arena must hold.
        most_scratch: experts beyond which it gains nothing.
        always_scratch: whether the arena is there even with every expert in the bank.
        other_weights: all weights besides.
        reserve: interpreter, libraries, activations, and what is there twice while loading.
        kv: tokens → key-value state of a context up to so long; None where it is not known.
        context: tokens that the model takes at most.
    """

    experts: int
    least_bank: int
    streaming: bool
    scratch: Callable[[int], int] | None
    least_scratch: int
    most_scratch: int
    always_scratch: bool
    other_weights: int
    reserve: int
    kv: Callable[[int], int] | None
    context: int


class MemoryPlan(NamedTuple):
    """Who gets what, in bytes.

    Attributes:
        parts: label → bytes of every part, in the order of a table.
        told: labels of the parts whose size was asked for → how.
        bank: of `parts`, the experts.
        scratch_experts: experts that the arena holds.
        kv: of `parts`, key-value state; 0 where it is not known.
        tokens: what prompt and answer may have together.
        limit: what all parts may take together; None if the machine's memory is not known.
        limit_source: where that comes from.
        problem: why the plan cannot be carried out, or None.
    """

    parts: dict[str, int]
    told: dict[str, str]
    bank: int
    scratch_experts: int
    kv: int
    tokens: int
    limit: int | None
    limit_source: str
    problem: str | None

    @property
    def needed(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())

    @property
    def scratch(self) -> int:
        """Of `parts`, the arena."""
        return self.parts.get(SCRATCH, 0)

    def table(self) -> list[str]:
        """The arithmetic, line by line."""
        rows = [(label, size, self.told.get(label, "")) for label, size in self.parts.items()]
        rows.append(("together", self.needed, ""))
        if self.limit is not None:
            rows.append(("limit", self.limit, self.limit_source))
        return [f"  {label:<16}{size / 1e9:>11.4f} GB  {told}".rstrip() for label, size, told in rows]


BANK, ALL_EXPERTS, SCRATCH, OTHERS, KV, RESERVE = (
    "expert cache", "all experts", "prefill scratch", "other weights", "KV cache", "reserve",
)  # fmt: skip


def kv_bound(adapter: MoeArchAdapter, config: ConfigFields, element_bytes: int) -> Callable[[int], int]:
    """Tokens → the most key-value state that a context takes on its way to so many tokens.

    Args:
        adapter: the architecture.
        config: as the family's model reads it.
        element_bytes: per activation.
    """

    def bound(tokens: int) -> int:
        if adapter.kv_cache_kind != "compressed":
            return kv_cache_bytes(adapter, config, tokens, element_bytes).total
        first = max(1, tokens - _SEARCH)
        return max(kv_cache_bytes(adapter, config, n, element_bytes).total for n in range(first, tokens + 1))

    return bound


def plan_memory(
    needs: MemoryNeeds, budgets: MemoryBudgets, available: int | None, available_source: str
) -> MemoryPlan:
    """Divide the memory.

    Args:
        needs: of the checkpoint.
        budgets: what was asked for. The caller has refused what does not go with the residency.
        available: bytes that can be had on this machine; None if that is not known.
        available_source: what says so.
    """
    return _Division(needs, budgets, available, available_source).plan()


class _Division:
    def __init__(
        self, needs: MemoryNeeds, budgets: MemoryBudgets, available: int | None, available_source: str
    ) -> None:
        self.needs, self.budgets = needs, budgets
        self.limit, self.source = available, available_source
        if budgets.total is not None and (available is None or budgets.total <= available):
            self.limit, self.source = budgets.total, "--memory-gb"
        self.told: dict[str, str] = {}
        self.least_tokens = min(needs.context, KV_STEP)

    def plan(self) -> MemoryPlan:
        needs, budgets = self.needs, self.budgets
        experts, arena = self._arena()
        fixed = needs.other_weights + needs.reserve
        kv = 0
        if budgets.kv_cache is not None:
            self.told[KV] = "--kv-cache-gb"
            kv = budgets.kv_cache
            if needs.kv is not None:
                kv = min(kv, needs.kv(needs.context))
        bank = needs.experts
        if needs.streaming:
            bank = self._bank(fixed, arena, kv)
        whole = bank >= needs.experts
        scratch = 0 if whole and not needs.always_scratch else arena
        tokens = needs.context
        if budgets.kv_cache is not None:
            tokens = self._tokens(budgets.kv_cache)
        elif needs.kv is not None:
            if self.limit is not None:
                tokens = max(self._tokens(self.limit - fixed - bank - scratch), self.least_tokens)
            kv = needs.kv(tokens)
        if KV not in self.told and needs.kv is not None:
            self.told[KV] = f"{tokens} tokens"
        parts = {
            BANK if needs.streaming else ALL_EXPERTS: bank,
            SCRATCH: scratch,
            OTHERS: needs.other_weights,
            KV: kv,
            RESERVE: needs.reserve,
        }
        parts = {label: size for label, size in parts.items() if size or label in (OTHERS, RESERVE)}
        plan = MemoryPlan(
            parts,
            self.told,
            bank,
            experts,
            kv,
            tokens,
            self.limit,
            self.source,
            self._too_small(experts, tokens),
        )
        return plan._replace(problem=plan.problem or self._too_big(plan))

    def _arena(self) -> tuple[int, int]:
        """Experts of the arena, and its bytes."""
        needs, budgets = self.needs, self.budgets
        if needs.scratch is None:
            return 0, 0
        experts = SCRATCH_EXPERTS
        if budgets.scratch_experts is not None:
            experts = budgets.scratch_experts
            self.told[SCRATCH] = "LME_SCRATCH_EXPERTS"
        elif budgets.prefill_scratch is not None:
            self.told[SCRATCH] = "--prefill-scratch-gb"
            experts = most_below(needs.scratch, budgets.prefill_scratch, needs.most_scratch)
            if experts < needs.least_scratch:
                return experts, 0
        experts = min(max(experts, needs.least_scratch), needs.most_scratch)
        self.told.setdefault(SCRATCH, f"{experts} experts")
        return experts, needs.scratch(experts)

    def _bank(self, fixed: int, arena: int, kv: int) -> int:
        """Bytes of the bank. Args: kv: what was asked for, or 0."""
        needs, asked = self.needs, self.budgets.expert_cache
        if asked is not None:
            self.told[BANK] = "--expert-cache-gb"
            return min(asked, needs.experts)
        if self.limit is None:
            return needs.experts
        room = self.limit - fixed - kv
        if self.budgets.total is None:
            # Half: the page cache is what the rest of the experts is read through.
            return max(0, min(needs.experts, room // 2))
        if not kv and needs.kv is not None:
            share = min(room // KV_SHARE, room - arena - needs.least_bank)
            room -= needs.kv(max(self._tokens(share), self.least_tokens))
        always = arena if needs.always_scratch else 0
        if room - always >= needs.experts:
            return needs.experts
        return max(0, room - arena)

    def _tokens(self, budget: int) -> int:
        """Tokens whose state fits into `budget`; 0 if not one does."""
        needs = self.needs
        return needs.context if needs.kv is None else most_below(needs.kv, budget, needs.context)

    def _too_small(self, scratch_experts: int, tokens: int) -> str | None:
        """What was asked for and is less than the least, or None."""
        needs, budgets = self.needs, self.budgets
        if self.told.get(SCRATCH) == "--prefill-scratch-gb" and scratch_experts < needs.least_scratch:
            assert needs.scratch is not None
            least = needs.scratch(needs.least_scratch)
            return f"--prefill-scratch-gb must hold {needs.least_scratch} experts: at least {_up(least)}"
        if budgets.kv_cache is not None and tokens < self.least_tokens:
            assert needs.kv is not None
            return (
                f"--kv-cache-gb must hold the keys and values of {self.least_tokens} tokens: at least "
                f"{_up(needs.kv(self.least_tokens))}"
            )
        return None

    def _too_big(self, plan: MemoryPlan) -> str | None:
        """Why the parts do not fit, with what would help, or None."""
        needs = self.needs
        if self.limit is None:
            return None
        over = plan.needed - self.limit
        if needs.streaming and plan.bank < needs.least_bank:
            if BANK in self.told:
                return None  # the bank's own refusal says it
            over = max(over, 0) + needs.least_bank - plan.bank
        if over <= 0:
            return None
        what = f"{plan.needed / 1e9:.2f} GB do not fit into {self.limit / 1e9:.2f} GB ({self.source})"
        if needs.streaming and BANK not in self.told:
            what = f"{self.limit / 1e9:.2f} GB ({self.source}) leave no room for one token's experts"
        return f"{what}: {self._advice(plan, over)}"

    def _advice(self, plan: MemoryPlan, over: int) -> str:
        needs, ways = self.needs, []
        for label, least in ((BANK, needs.least_bank), (KV, needs.kv(self.least_tokens) if needs.kv else 0)):
            flag = self.told.get(label, "")
            size = plan.parts.get(label, 0)
            if flag.startswith("--") and size - over >= least:
                ways.append(f"lower {flag} to {_down(size - over)} or less")
        if self.source == "--memory-gb":
            ways.append(f"raise --memory-gb to {_up(self.limit + over if self.limit else over)}")
        if not needs.streaming and needs.experts:
            ways.append("use --streaming")
        if not ways and any(flag.startswith("--") for flag in self.told.values()):
            ways.append("lower " + " and ".join(f for f in self.told.values() if f.startswith("--")))
        return ", or ".join(ways or ["free some memory, or use a smaller or more quantised checkpoint"])


def most_below(size: Callable[[int], int], budget: int, high: int) -> int:
    """The largest n from 0 to `high` with `size(n)` ≤ `budget`, 0 if there is none; `size` never falls."""
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        if size(middle) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def budget_problem(budgets_gb: Mapping[str, float | None]) -> str | None:
    """What is wrong with budgets in 10⁹ bytes, flag → value; None if nothing is."""
    for flag, value in budgets_gb.items():
        if value is not None and not 0 < value < 1e6:
            return f"{flag} {value}: must be a positive number of 10⁹ bytes"
    return None


def _up(size: int) -> str:
    return f"{-(-size // 1_000_000) / 1e3:g}"


def _down(size: int) -> str:
    return f"{size // 1_000_000 / 1e3:g}"
