"""Owns the memory model: what the engine takes for a checkpoint, part by part, and whether that fits here.

It mirrors what mach-store allocates: on the CPU backend floats are widened to float32, but for experts that
native kernels compute as they are stored; the bank is a whole number of slots; the scratch arena holds 16
experts of each record shape and is made only if the bank cannot hold everything. `docs/preflight.md` has the
arithmetic and measured figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from mach.io.inspection import CheckpointInspection
from mach.io.model_tensors import model_config
from mach.preflight.expert_bytes import ExpertSizes, expert_sizes
from mach.preflight.kv_cache_bytes import KvBytes, kv_cache_bytes
from mach.preflight.machine import Machine
from mach.preflight.memory_needs import (
    RUNTIME_BYTES,
    TRANSIENT_BYTES,
    activation_bytes,
    load_transient,
    needs_from_headers,
    other_weight_bytes,
    whole_bytes,
)
from mach.preflight.memory_plan import TRANSIENT_MIN_TOKENS, MemoryBudgets, MemoryPlan, plan_memory

if TYPE_CHECKING:
    from mach.io.sidecar_layout import SidecarLayout

NOTHING_ASKED = MemoryBudgets()
TRANSIENT_TOKENS = 256
"""Up to so many tokens a prefill's free buffers grow (measured)."""
FITS_BELOW = 0.85
"""Share of the available memory up to which a working set fits; beyond it is tight, beyond all too big."""

_SWAPPED_PARTS = ("other weights", "draft")
"""Parts that mlx-lm's own model has not: one part holds all its weights, and no draft goes with it."""

VERDICTS = ("fits", "tight", "wont_fit", "unknown")


class ModeEstimate(NamedTuple):
    """One residency mode's memory.

    Attributes:
        parts: label → bytes, whose sum is the working set.
        verdict: one of VERDICTS.
    """

    parts: dict[str, int]
    verdict: str

    @property
    def working_set(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values())


class MemoryEstimate(NamedTuple):
    """The memory of one checkpoint on one machine.

    Attributes:
        machine: where.
        context: tokens of key-value state.
        kv: its bytes.
        experts: the routed experts' sizes.
        bank_bytes: the expert cache.
        bank_share: part of all experts that it holds, 0 to 1.
        streaming: `--streaming`.
        resident: `--no-streaming`.
        float_bank_bytes: the expert cache of bf16_streaming.
        bf16_streaming: that mode; None where the layout has no slices.
        unswapped: `--backend openai`.
        plans: residency → how loading would divide the memory.
    """

    machine: Machine
    context: int
    kv: KvBytes
    experts: ExpertSizes
    bank_bytes: int
    bank_share: float
    streaming: ModeEstimate
    resident: ModeEstimate
    float_bank_bytes: int
    bf16_streaming: ModeEstimate | None
    unswapped: ModeEstimate
    plans: dict[str, MemoryPlan]


def estimate_memory(
    inspection: CheckpointInspection,
    layout: SidecarLayout | None,
    machine: Machine,
    *,
    context: int,
    budgets: MemoryBudgets = NOTHING_ASKED,
    draft_bytes: int = 0,
) -> MemoryEstimate:
    """The memory that the engine would take.

    Args:
        inspection: the checkpoint, with its headers read.
        layout: its sidecar's layout if it has a valid one.
        machine: where it is to run.
        context: tokens of key-value state.
        budgets: what is asked for; the rest is as the loader has it.
        draft_bytes: weights of a draft.

    Raises:
        ConfigError: config.json lacks what the key-value estimate needs.
    """
    sizes = expert_sizes(inspection, layout, machine)
    adapter, element = inspection.adapter, 4 if machine.backend == "cpu" else 2
    config = model_config(adapter.model_type, inspection.config, inspection.text_config)
    kv = kv_cache_bytes(adapter, config, context, element)
    slices = bool(sizes.layer_floats) and inspection.layout in ("stacked", "per_expert", "fused")
    plans = {}
    for residency in ("streaming", "stacked", "unswapped", *(("bf16_streaming",) if slices else ())):
        needs = needs_from_headers(inspection, sizes, machine.backend, residency)
        asked = budgets if needs.streaming else MemoryBudgets(budgets.total, kv_cache=budgets.kv_cache)
        plans[residency] = plan_memory(needs, asked, machine.available_bytes, machine.source)
    common = {
        "other weights": other_weight_bytes(inspection, machine.backend),
        f"KV at {context} tokens": kv.total,
        "draft": draft_bytes,
        "prefill activations": activation_bytes(inspection, machine.backend, context),
        "load transient": load_transient(inspection, machine.backend),
        "runtime": RUNTIME_BYTES,
    }
    plan, everything = plans["streaming"], sizes.total_slots
    bank = _whole_slots(plan.bank, everything, sizes.layer_slots)
    scratch = 0
    if bank < everything and context >= TRANSIENT_MIN_TOKENS:
        scratch = sizes.scratch(min(plan.scratch_experts, sizes.experts))
        scratch += TRANSIENT_BYTES * min(context, TRANSIENT_TOKENS) // TRANSIENT_TOKENS
    streaming = {"expert cache": bank, "prefill scratch": scratch} | common
    resident = {"all experts": everything} | common
    float_bank, bf16 = 0, None
    if slices:
        plan = plans["bf16_streaming"]
        all_floats = sizes.experts * sum(sizes.layer_floats.values())
        float_bank = _whole_slots(plan.bank, all_floats, sizes.layer_floats)
        # Where the bank is narrow a pass computes in the arena; otherwise it has what does not fit the bank.
        used = sizes.narrow_floats or float_bank < all_floats
        arena = sizes.float_scratch(plan.scratch_experts) if used else 0
        bf16 = _judged({"expert cache": float_bank, "arena": arena} | common, machine, plan)
    own = {"all weights": whole_bytes(inspection, machine.backend)}
    own |= {label: size for label, size in common.items() if label not in _SWAPPED_PARTS}
    return MemoryEstimate(
        machine=machine,
        context=context,
        kv=kv,
        experts=sizes,
        bank_bytes=bank,
        bank_share=bank / everything if everything else 1.0,
        streaming=_judged(streaming, machine, plans["streaming"]),
        resident=_judged(resident, machine, plans["stacked"]),
        float_bank_bytes=float_bank,
        bf16_streaming=bf16,
        unswapped=_judged(own, machine, plans["unswapped"]),
        plans=plans,
    )


def _whole_slots(bank: int, everything: int, layer_slots: Mapping[int, int]) -> int:
    if bank >= everything:
        return everything
    slot = max(layer_slots.values(), default=1)
    return bank // slot * slot


def _judged(parts: dict[str, int], machine: Machine, plan: MemoryPlan) -> ModeEstimate:
    """The verdict on a mode; what the loader would refuse to start cannot fit, however small it is."""
    parts = {label: size for label, size in parts.items() if size}
    if machine.available_bytes is not None and plan.problem is not None:
        return ModeEstimate(parts, "wont_fit")
    return ModeEstimate(parts, memory_verdict(sum(parts.values()), machine.available_bytes))


def memory_verdict(working_set: int, available: int | None) -> str:
    """`fits`, `tight` or `wont_fit` for a working set in the available memory; `unknown` without that."""
    if available is None:
        return "unknown"
    if working_set > available:
        return "wont_fit"
    return "fits" if working_set <= FITS_BELOW * available else "tight"
