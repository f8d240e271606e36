"""Owns the bodies of `/v1/models`, `/v1/stats`, `/v1/cache/stats`, `/v1/capabilities` and `/health`.

README.md lists every field.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Any

from mach_server.inference_service import InferenceService
from mach_server.serving_facts import (
    ADAPTIVE_BLOCK_POLICY,
    ADAPTIVE_BLOCK_SETTINGS,
    DECODE_PATH,
    EFFECTIVE_DECODE_PATH,
    ServingFacts,
)
from mach_store.machine_memory import peak_rss_bytes


def model(facts: ServingFacts, created: int) -> dict[str, Any]:
    """The loaded model, in `GET /v1/models` and alone. Args: created: Unix time of the start."""
    return {
        "id": facts.model,
        "object": "model",
        "created": created,
        "owned_by": "mach",
        "max_model_len": facts.kv_tokens,
    }


def health(service: InferenceService) -> tuple[dict[str, str], int]:
    """The body of `GET /health` and its status."""
    state = service.state
    return {"status": state}, 200 if state == "ok" else 503


def stats(service: InferenceService) -> dict[str, Any]:
    """The body of `GET /v1/stats`."""
    facts, thread = service.facts, service.thread
    counts, running = thread.counts, thread.running
    return {
        "model": facts.model,
        "decode_path": DECODE_PATH,
        "effective_decode_path": EFFECTIVE_DECODE_PATH,
        "adaptive_block_policy": {
            "name": ADAPTIVE_BLOCK_POLICY,
            **dict.fromkeys(ADAPTIVE_BLOCK_SETTINGS),
        },
        # Nothing is drafted: no cycle was observed, and there is no acceptance to tell.
        "specdec_drafted": 0,
        "specdec_accepted": 0,
        "recent_alpha": None,
        "observed_cycles": 0,
        "low_cycles": 0,
        "expert_reader": _reader(facts),
        "expert_dispatch": _dispatch(facts),
        "async_prefetch": _prefetch(thread.snapshot.store.get("prefetch_refusal", facts.prefetch_refusal)),
        "requests": {
            "completed": counts.completed,
            "cancelled": counts.cancelled,
            "withdrawn": counts.withdrawn,
            "failed": counts.failed,
            "rejected": service.rejected,
            "open": service.admitted,
        },
        "queue_depth": thread.waiting,
        "queue_limit": service.limits.queue_length,
        "running": None if running is None else running.as_dict(),
        "prompt_tokens": counts.prompt_tokens,
        "completion_tokens": counts.completion_tokens,
        "prompt_tokens_per_second": counts.prompt_tokens_per_second,
        "decode_tokens_per_second": counts.decode_tokens_per_second,
        "last_request": counts.last,
        "bank_forecast": _forecast_line(thread.snapshot.forecast),
        "memory": {
            **thread.snapshot.memory,
            "peak_rss_bytes": peak_rss_bytes(),
            "kv_budget_bytes": facts.kv_budget_bytes,
            "kv_tokens": facts.kv_tokens,
            "limit_bytes": facts.limit_bytes,
            "limit_source": facts.limit_source,
            "wired_bytes": facts.wired_bytes,
            "bank_bytes": thread.snapshot.store["bank_bytes"],
            "bank_declared_bytes": facts.bank_bytes,
            "pressure": thread.memory_state().as_dict(),
        },
    }


def cache_stats(service: InferenceService) -> dict[str, Any]:
    """The body of `GET /v1/cache/stats`: the store's figures between two steps of the generation thread."""
    thread, facts = service.thread, service.facts
    snapshot = thread.snapshot
    return {
        "streaming_summary": snapshot.store,
        "miss_ratio_curve": snapshot.forecast,
        "stale_generation_in_flight": thread.running is not None,
        "age_seconds": time.monotonic() - snapshot.taken,
        "direct_pread": {
            "active": facts.reader == "native",
            "mode": facts.reader,
            **facts.direct.as_dict(),
        },
        "cpu_kernels": facts.cpu_kernels,
        "trace_recording": None if service.recording is None else service.recording.as_dict(),
    }


def _forecast_line(forecast: dict[str, Any]) -> str:
    """`miss_ratio_curve` in one line: for each size its hit rate and speed, or why there is none."""
    if forecast["points"] is None:
        return f"none: {forecast['reason']}"
    parts = []
    for point in forecast["points"]:
        rate, speed = point["hit_rate"], point["tokens_per_second"]
        part = f"{point['relative']:g}x {point['bank_bytes'] / 1e9:.3g} GB"
        part += "" if rate is None else f" hit rate {rate:.3f}"
        parts.append(part + ("" if speed is None else f" {speed:.1f} tok/s"))
    return "; ".join(parts)


def capabilities(facts: ServingFacts) -> dict[str, Any]:
    """The body of `GET /v1/capabilities`."""
    return {
        "model": facts.model,
        "backend": facts.backend,
        "supported": facts.arch is not None,
        "arch": facts.arch,
        "serving": _serving(facts),
        "grammar": {
            "xgrammar": find_spec("xgrammar") is not None,
            "llguidance": True,
            # Never used, installed or not.
            "lm_format_enforcer": False,
        },
    }


def _serving(facts: ServingFacts) -> dict[str, Any]:
    asked = (
        "--target-only was given" if facts.target_only_asked else "this version has no speculative decoding"
    )
    common = {
        "expert_residency": facts.residency,
        "serving_mode": facts.serving_mode,
        "decode_path": DECODE_PATH,
        "effective_decode_path": EFFECTIVE_DECODE_PATH,
        "effective_decode_path_reason": asked,
        "continuous_batching": False,
        "turboquant_kv": False,
    }
    if facts.backend == "openai":
        return {**common, "disk_kv": False}
    return {
        **common,
        "decode_policy": {"mode": "target-only", "engine_mode": "target_only"},
        "speculation": {"supported_presets": ["none"], "additive": True, "exactness_preserving": True},
        "rho_gate": None,
        "expert_reader": _reader(facts),
        "expert_dispatch": _dispatch(facts),
        "async_prefetch": _prefetch(facts.prefetch_refusal),
    }


def _dispatch(facts: ServingFacts) -> dict[str, Any]:
    return {"name": facts.dispatch, "reason": facts.dispatch_reason}


def _prefetch(refusal: str | None) -> dict[str, Any]:
    return {"active": refusal is None, "reason": refusal}


def _reader(facts: ServingFacts) -> dict[str, Any]:
    return {"name": facts.reader, "reason": facts.reader_reason or None}
