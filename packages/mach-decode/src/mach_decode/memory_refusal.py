"""Owns the refusal, with the whole arithmetic, to load what does not fit into the memory there is."""

from __future__ import annotations

from mach.preflight.memory_plan import MemoryBudgets, MemoryNeeds, MemoryPlan, plan_memory
from mach_store.errors import MemoryBudgetError
from mach_store.machine_memory import available_memory


def admitted_plan(checkpoint: str, needs: MemoryNeeds, budgets: MemoryBudgets) -> MemoryPlan:
    """How the memory is divided among the parts of an engine for `checkpoint`.

    Raises:
        MemoryBudgetError: they do not fit, or a budget is less than the least; the message says why and what
            would help, and a table under it has every part.
    """
    available = available_memory()
    plan = plan_memory(needs, budgets, available.nbytes, available.source)
    if plan.problem is not None:
        assert plan.limit is not None, "what the machine has is known to the loader"
        raise MemoryBudgetError(
            "\n".join([f"{checkpoint}: {plan.problem}", *plan.table()]),
            needed=plan.needed,
            available=plan.limit,
        )
    return plan
