"""Owns the budgets that a user may give, in 10⁹ bytes, and what they mean in each residency."""

from __future__ import annotations

from dataclasses import dataclass

from mach.preflight.memory_plan import MemoryBudgets, budget_problem
from mach_decode.errors import ResidencyError
from mach_store.settings import StoreSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFlags:
    """Budgets in 10⁹ bytes; None is left to the loader (docs/memory.md).

    Attributes:
        expert_cache_gb: the bank (streaming alone).
        memory_gb: everything together.
        prefill_scratch_gb: the arena of long prompts (streaming alone).
        kv_cache_gb: keys and values of one request's prompt and answer.
        wired_gb: Metal's wired limit (Metal alone).
    """

    expert_cache_gb: float | None = None
    memory_gb: float | None = None
    prefill_scratch_gb: float | None = None
    kv_cache_gb: float | None = None
    wired_gb: float | None = None

    def by_flag(self) -> dict[str, float | None]:
        """Flag → value."""
        return {
            "--expert-cache-gb": self.expert_cache_gb,
            "--memory-gb": self.memory_gb,
            "--prefill-scratch-gb": self.prefill_scratch_gb,
            "--kv-cache-gb": self.kv_cache_gb,
            "--wired-gb": self.wired_gb,
        }

    def budgets(self, residency: str, settings: StoreSettings) -> MemoryBudgets:
        """The budgets in bytes.

        Args:
            residency: `streaming`, `bf16_streaming`, `stacked` or `unswapped`.
            settings: may name the arena's experts.

        Raises:
            ResidencyError: a budget is no positive number, does not go with the residency, or contradicts
                a variable.
        """
        if problem := budget_problem(self.by_flag()):
            raise ResidencyError(problem)
        if residency in ("stacked", "unswapped"):
            mode = "--no-streaming" if residency == "stacked" else "--backend openai"
            for flag, bounds in (
                ("--expert-cache-gb", "the streaming bank"),
                ("--prefill-scratch-gb", "the arena of streaming prompts"),
            ):
                if self.by_flag()[flag] is not None:
                    raise ResidencyError(f"{flag} bounds {bounds}: it cannot go with {mode}")
            return MemoryBudgets(total=_bytes(self.memory_gb), kv_cache=_bytes(self.kv_cache_gb))
        if self.prefill_scratch_gb is not None and settings.scratch_told:
            raise ResidencyError(
                "--prefill-scratch-gb and LME_SCRATCH_EXPERTS both bound the arena of long prompts: give one"
            )
        return MemoryBudgets(
            total=_bytes(self.memory_gb),
            expert_cache=_bytes(self.expert_cache_gb),
            prefill_scratch=_bytes(self.prefill_scratch_gb),
            kv_cache=_bytes(self.kv_cache_gb),
            scratch_experts=settings.scratch_experts if settings.scratch_told else None,
        )


NO_BUDGETS = MemoryFlags()
"""Everything is left to the loader."""


def _bytes(gigabytes: float | None) -> int | None:
    return None if gigabytes is None else int(gigabytes * 1e9)
