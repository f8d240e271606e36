"""Owns the start-up lines on stdout, whose keys people and scripts look for; they say what the facts say."""

from __future__ import annotations

from mach_server.serving_facts import ADAPTIVE_BLOCK_POLICY, DECODE_PATH, ServingFacts


def startup_lines(facts: ServingFacts) -> list[str]:
    """The lines, each of words and `key=value` pairs without blanks inside a value."""
    arch = "none" if facts.arch is None else facts.arch["model_type"]
    total = facts.bank_bytes + facts.scratch_bytes + facts.other_weight_bytes
    last = [
        f"startup decode_path={DECODE_PATH} adaptive_block_policy={ADAPTIVE_BLOCK_POLICY}",
        f"startup memory expert_bank_bytes={facts.bank_bytes} scratch_bytes={facts.scratch_bytes} "
        f"other_weight_bytes={facts.other_weight_bytes} total_bytes={total} "
        f"context_length={facts.context_length} kv_budget_bytes={facts.kv_budget_bytes} "
        f"kv_tokens={facts.kv_tokens} reserve_bytes={facts.reserve_bytes} "
        f"planned_bytes={total + facts.kv_budget_bytes + facts.reserve_bytes} "
        f"limit_bytes={_or_none(facts.limit_bytes)} limit_source={facts.limit_source} "
        f"wired_bytes={_or_none(facts.wired_bytes)}",
    ]
    if facts.backend == "openai":
        # No expert store, so no line about its reads.
        mode = f"startup mode profile=openai serving_mode={facts.serving_mode}"
        return [f"{mode} expert_residency={facts.residency} dispatch={facts.dispatch} arch={arch}", *last]
    native = int(facts.reader == "native")
    return [
        f"startup mode profile=production production_streaming_mode={facts.serving_mode} "
        f"transient_prefill={int(facts.transient_prefill)} expert_residency={facts.residency} "
        f"dispatch={facts.dispatch} eviction_policy={facts.eviction_policy} arch={arch}",
        f"production optimizations direct_pread={native} direct_io={int(facts.direct.direct)} "
        f"direct_io_asked={facts.direct.asked} direct_io_reason={facts.direct.code} "
        f"read_threads={facts.read_threads} verify_reads={int(facts.verified)} "
        f"native_prefill_fused=0 async_prefetch={int(facts.prefetch_refusal is None)} "
        f"resident_metal={int(facts.resident_metal)}",
        f"startup direct-pread expected={int(facts.streaming)} sidecar_present={int(facts.sidecar_present)} "
        f"sidecar_valid={int(facts.sidecar_valid)} "
        f"native_extension={'ready' if facts.native_extension else 'missing'} reader={facts.reader} "
        f"fallback_policy={facts.fallback_policy}",
        *last,
    ]


def _or_none(value: int | None) -> str:
    return "none" if value is None else str(value)
