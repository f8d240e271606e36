"""Owns the list of serving paths and the matrix of path × architecture, both through the gates."""

from __future__ import annotations

from mach.io.arch_adapter import MoeArchAdapter
from mach.io.arch_registry import REGISTRY
from mach.io.inspection import CheckpointInspection
from mach.preflight import gates
from mach.preflight.draft_probe import DraftProbe
from mach.preflight.gates import Verdict
from mach.preflight.sidecar_probe import SidecarProbe, probe_sidecar

PATHS = (
    "openai_http",
    "expert_streaming",
    "resident_stacked",
    "bf16_streaming",
    "gguf_experts_2bit",
    "specdec",
    "continuous_batching",
    "turboquant_kv",
    "prefix_kv_reuse",
    "native_tool_grammar",
)


def judge_paths(
    adapter: MoeArchAdapter,
    inspection: CheckpointInspection | None = None,
    sidecar: SidecarProbe | None = None,
    draft: DraftProbe | None = None,
) -> dict[str, Verdict]:
    """Path → verdict, in the order of PATHS; for the architecture alone if `inspection` is None."""
    if inspection is not None and sidecar is None:
        sidecar = probe_sidecar(inspection)
    return {
        "openai_http": gates.http_gate(adapter, inspection, sidecar),
        "expert_streaming": gates.streaming_gate(adapter, inspection, sidecar),
        "resident_stacked": gates.resident_gate(adapter, inspection),
        "bf16_streaming": gates.bf16_streaming_gate(adapter, inspection),
        "gguf_experts_2bit": gates.gguf_gate(adapter, inspection),
        "specdec": gates.specdec_gate(adapter, inspection, draft),
        "continuous_batching": gates.batching_gate(adapter, inspection),
        "turboquant_kv": gates.turboquant_gate(adapter, inspection),
        "prefix_kv_reuse": gates.prefix_gate(adapter, inspection),
        "native_tool_grammar": gates.tool_gate(adapter, inspection),
    }


def architecture_matrix() -> dict[str, dict[str, Verdict]]:
    """Architecture → path → verdict, architectures in alphabetical order."""
    return {model_type: judge_paths(REGISTRY[model_type]) for model_type in sorted(REGISTRY)}
