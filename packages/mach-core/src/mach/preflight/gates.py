"""Owns the gates: one function per serving path, asked by the preflight, the loader and the server alike.

A gate judges an architecture (`inspection` None: the answer for any checkpoint of it) or one checkpoint. For
a checkpoint it answers for the engine of this version, so what `ENGINE_PATHS` lacks is blocked there, and
says so; for an architecture it answers what the design allows.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from mach.io.arch_adapter import MoeArchAdapter
from mach.io.arch_registry import continuous_batching_for
from mach.io.inspection import CheckpointInspection
from mach.io.model_tensors import WEIGHTS_PREFIX, weights_problem
from mach.io.quantization import BLOCK_MODES, MLX_MODES, RoutedQuantization
from mach.preflight.draft_probe import DraftProbe
from mach.preflight.sidecar_probe import SidecarProbe, probe_sidecar

OK, BLOCKED, NEEDS_ARTIFACT, UNKNOWN, NOT_APPLICABLE = "ok", "blocked", "needs_artifact", "unknown", "n/a"
STATUSES = (OK, BLOCKED, NEEDS_ARTIFACT, UNKNOWN, NOT_APPLICABLE)

ENGINE_PATHS = frozenset({"openai_http", "expert_streaming", "resident_stacked", "bf16_streaming"})
"""The paths that the engine of this version has; a path joins when its code does."""

EXPERT_DTYPES = frozenset({"U8", "U32", "F16", "BF16", "F32"})
"""Tensor dtypes that the stores read."""

_RAW_LAYOUTS = ("per_expert", "fused")
_MLX_LM_RAW = {"qwen3_moe": "per_expert", "qwen3_5_moe": "fused", "gemma4": "fused"}
"""Family → the raw layout of float experts that mlx-lm's model of it stacks while loading."""

BF16_VARIABLE = "LME_BF16_STACKED_STREAMING"
PRUNE_HINT = "slice the checkpoint with mach-prune --source DIR --output OUT"


class Verdict(NamedTuple):
    """A status (one of STATUSES) and a reason that tells what to do where something can be done."""

    status: str
    reason: str


def load_gate(adapter: MoeArchAdapter) -> Verdict:
    """Whether this version can build the architecture's model at all."""
    if adapter.implementation is None:
        return Verdict(BLOCKED, f"this version of mach has no model for {adapter.model_type} yet")
    return Verdict(OK, "registered architecture")


def http_gate(
    adapter: MoeArchAdapter,
    inspection: CheckpointInspection | None = None,
    sidecar: SidecarProbe | None = None,
) -> Verdict:
    """Serving over HTTP in any residency, or with mlx-lm's own model."""
    if inspection is None:
        return Verdict(OK, "registered architecture")
    loads = load_gate(adapter)
    if loads.status != OK:
        return loads
    residencies = (streaming_gate(adapter, inspection, sidecar), resident_gate(adapter, inspection))
    if any(verdict.status == OK for verdict in residencies):
        return loads
    if bf16_streaming_gate(adapter, inspection).status == OK:
        return Verdict(OK, f"for comparisons alone, with {BF16_VARIABLE}=1: {residencies[0].reason}")
    if unswapped_gate(adapter, inspection).status == OK:
        return Verdict(OK, f"unswapped alone, with --backend openai: {residencies[0].reason}")
    # Streaming's answer tells more: it is the residency that an artifact can bring about.
    return Verdict(residencies[0].status, f"no residency can load it yet: {residencies[0].reason}")


def streaming_gate(
    adapter: MoeArchAdapter,
    inspection: CheckpointInspection | None = None,
    sidecar: SidecarProbe | None = None,
) -> Verdict:
    """`--streaming`: experts from a sidecar, or from slices of a stacked checkpoint.

    `sidecar` saves probing it again.
    """
    if inspection is None:
        return Verdict(OK, "expert-sidecar streaming")
    if (loads := load_gate(adapter)).status != OK:
        return loads
    if inspection.layout == "dense":
        return Verdict(BLOCKED, "no routed experts to stream: serve it with --backend openai")
    probe = sidecar or probe_sidecar(inspection)
    if probe.present:
        if not probe.valid:
            return Verdict(BLOCKED, f"the sidecar is not usable: {probe.reason}")
        if problem := _incomplete(inspection):
            return Verdict(BLOCKED, problem)
        return Verdict(OK, "expert-sidecar streaming")
    if inspection.layout == "stacked" and adapter.stacked_supported:
        if problem := _unreadable(inspection) or _incomplete(inspection):
            return Verdict(BLOCKED, problem)
        return Verdict(OK, f"lazy per-expert slices of the stacked layout; for aligned records {PRUNE_HINT}")
    if not inspection.headers_read:
        return Verdict(UNKNOWN, "the weights' headers could not be read")
    if inspection.layout in (*_RAW_LAYOUTS, "stacked"):
        # Raw checkpoints are few, and their description is not what every check should wait for.
        from mach.io.exportable import export_problem  # noqa: PLC0415

        if problem := export_problem(inspection):
            return Verdict(BLOCKED, f"no sidecar can be exported from it: {problem}")
        if problem := _unprunable(inspection):
            return Verdict(BLOCKED, problem)
        return Verdict(NEEDS_ARTIFACT, f"{inspection.layout} layout needs an expert sidecar: {PRUNE_HINT}")
    return Verdict(
        BLOCKED,
        f"{inspection.layout_reason}: put the missing files back or the right config.json, or make the "
        "checkpoint again",
    )


def resident_gate(adapter: MoeArchAdapter, inspection: CheckpointInspection | None = None) -> Verdict:
    """`--no-streaming`: every expert in memory, from the axis-0 stacked layout alone."""
    if not adapter.stacked_supported:
        return _sliced_alone(adapter, inspection)
    if inspection is None:
        return Verdict(UNKNOWN, "depends on the checkpoint's layout")
    if (loads := load_gate(adapter)).status != OK:
        return loads
    if inspection.layout == "stacked":
        if problem := _unreadable(inspection) or _incomplete(inspection):
            return Verdict(BLOCKED, problem)
        return Verdict(OK, "stacked-layout checkpoint usable for resident serving")
    if not inspection.headers_read:
        return Verdict(UNKNOWN, "the weights' headers could not be read")
    advice = ""
    if inspection.layout in _RAW_LAYOUTS and inspection.quantization.mode in ("none", "fp8", *MLX_MODES):
        advice = f": {PRUNE_HINT}, and use --streaming"
    return Verdict(BLOCKED, f"needs the axis-0 stacked layout, found {inspection.layout}{advice}")


def bf16_streaming_gate(adapter: MoeArchAdapter, inspection: CheckpointInspection | None = None) -> Verdict:
    """`bf16_streaming`: slices of stacked or raw float tensors in a bank of plain floats, for comparisons."""
    if inspection is None:
        return Verdict(UNKNOWN, "depends on the checkpoint's layout")
    if not adapter.stacked_supported:
        return _sliced_alone(adapter, inspection)
    if (loads := load_gate(adapter)).status != OK:
        return loads
    if inspection.layout == "stacked":
        if problem := _unreadable(inspection) or _incomplete(inspection):
            return Verdict(BLOCKED, problem)
        return Verdict(OK, "stacked layout supports bf16 streaming")
    if not inspection.headers_read and inspection.layout != "sliced":
        return Verdict(UNKNOWN, "the weights' headers could not be read")
    if inspection.layout in _RAW_LAYOUTS:
        from mach.io.raw_slices import slices_problem  # noqa: PLC0415 - as above

        if problem := slices_problem(inspection):
            return Verdict(BLOCKED, f"{problem}: {PRUNE_HINT}, and use --streaming")
        if problem := _incomplete(inspection):
            return Verdict(BLOCKED, problem)
        return Verdict(OK, f"slices of the raw {inspection.layout} layout")
    return Verdict(BLOCKED, f"needs the axis-0 stacked layout, found {inspection.layout}")


def unswapped_gate(adapter: MoeArchAdapter, inspection: CheckpointInspection) -> Verdict:
    """`--backend openai`: mlx-lm's own model, every weight in memory.

    What mlx-lm makes of a raw checkpoint that is no float one, or of what mach itself would refuse, is not
    known here: `unknown`.
    """
    if adapter.implementation is None or not adapter.implementation.startswith("mlx_lm."):
        return Verdict(BLOCKED, f"mlx-lm has no model for {adapter.model_type}")
    if not inspection.headers_read:
        return Verdict(UNKNOWN, "the weights' headers could not be read")
    if inspection.layout == "sliced":
        return Verdict(BLOCKED, "the experts are in a sidecar, which mlx-lm does not read")
    if inspection.layout == "unknown":
        return Verdict(BLOCKED, inspection.layout_reason)
    if inspection.layout == "stacked" and (problem := _unreadable(inspection)):
        return Verdict(UNKNOWN, f"mlx-lm may load what mach does not: {problem}")
    raw = inspection.layout not in ("stacked", "dense")
    plain = (
        inspection.quantization.scheme is None and _MLX_LM_RAW.get(adapter.model_type) == inspection.layout
    )
    if raw and not plain:
        return Verdict(UNKNOWN, f"what mlx-lm makes of {inspection.layout} experts shows when it loads them")
    if raw:
        from mach.io.exportable import export_problem  # noqa: PLC0415 - as in streaming_gate

        if problem := export_problem(inspection):
            return Verdict(UNKNOWN, f"mlx-lm may load what mach does not: {problem}")
    if problem := _incomplete(inspection):
        return Verdict(UNKNOWN, f"mlx-lm may load what mach does not: {problem}")
    return Verdict(OK, f"mlx-lm {'stacks the raw experts while loading' if raw else 'loads it as it is'}")


def gguf_gate(adapter: MoeArchAdapter, inspection: CheckpointInspection | None = None) -> Verdict:
    """2-bit GGUF experts."""
    if inspection is None:
        return Verdict(UNKNOWN, "depends on the checkpoint's expert format")
    if inspection.quantization.mode != "gguf":
        return Verdict(NOT_APPLICABLE, "no gguf expert sidecar / format")
    return _in_engine("gguf_experts_2bit", Verdict(OK, "gguf expert format"))


def specdec_gate(
    adapter: MoeArchAdapter,
    inspection: CheckpointInspection | None = None,
    draft: DraftProbe | None = None,
) -> Verdict:
    """Speculative decoding; without a usable draft the engine serves target-only."""
    kind = adapter.specdec_kind
    if kind is None:
        return Verdict(NOT_APPLICABLE, f"no draft family for {adapter.model_type}: served target-only")
    if draft is not None and draft.usable:
        verdict = Verdict(OK, f"{kind} draft is usable")
    elif draft is not None:
        verdict = Verdict(NEEDS_ARTIFACT, f"--draft-dir is not usable: {draft.reason}")
    elif kind == "specdec_v7":
        verdict = Verdict(NEEDS_ARTIFACT, "specdec_v7 draft requires a usable --draft-dir")
    else:
        verdict = Verdict(NEEDS_ARTIFACT, f"{kind} requires the model's draft weights")
    return verdict if inspection is None else _in_engine("specdec", verdict)


def batching_gate(adapter: MoeArchAdapter, inspection: CheckpointInspection | None = None) -> Verdict:
    """Continuous batching, by the kind of key-value cache."""
    status, kind = continuous_batching_for(adapter.kv_cache_kind), adapter.kv_cache_kind
    reason = {
        OK: f"{kind} KV cache is batch-compatible",
        BLOCKED: f"{kind} KV cache cannot be batched: requests run one after another",
    }.get(status, f"{kind} KV cache batches only without kept tokens, which shows at load")
    verdict = Verdict(status, reason)
    return verdict if inspection is None else _in_engine("continuous_batching", verdict)


def turboquant_gate(adapter: MoeArchAdapter, inspection: CheckpointInspection | None = None) -> Verdict:
    """TurboQuant compression of the key-value cache."""
    verdict = Verdict(OK, "turboquant KV supported (mutually exclusive with the prefix cache)")
    return verdict if inspection is None else _in_engine("turboquant_kv", verdict)


def prefix_gate(adapter: MoeArchAdapter, inspection: CheckpointInspection | None = None) -> Verdict:
    """Reuse of a prompt's prefix, by the kind of key-value cache."""
    known = {
        "standard": Verdict(OK, "standard cache supports prefix trim reuse"),
        "hybrid_gdn": Verdict(OK, "attention KV and recurrent state are restored together"),
    }
    fallback = Verdict(UNKNOWN, f"{adapter.kv_cache_kind} cache: reuse shows at load")
    verdict = known.get(adapter.kv_cache_kind, fallback)
    return verdict if inspection is None else _in_engine("prefix_kv_reuse", verdict)


def tool_gate(adapter: MoeArchAdapter, inspection: CheckpointInspection | None = None) -> Verdict:
    """Tool calls in the family's own wire format, with grammar."""
    if adapter.native_tool_dialect is None:
        return Verdict(NOT_APPLICABLE, f"no native tool format for {adapter.model_type}")
    verdict = Verdict(OK, f"native {adapter.native_tool_dialect.capitalize()} tool/grammar path (xgrammar)")
    return verdict if inspection is None else _in_engine("native_tool_grammar", verdict)


def routed_quantization_problem(quantization: RoutedQuantization) -> str | None:
    """Why the stores cannot compute with experts packed so, or None."""
    schemes = (quantization.scheme, *quantization.overrides.values())
    for scheme in schemes:
        if scheme is not None and scheme.mode not in MLX_MODES:
            return f"{scheme.mode} experts cannot be computed with: convert to one of {', '.join(MLX_MODES)}"
    return None


def _sliced_alone(adapter: MoeArchAdapter, inspection: CheckpointInspection | None) -> Verdict:
    """The refusal of a residency that needs stacked tensors, for a family that loads sliced ones alone."""
    advice = "use --streaming"
    if inspection is not None and inspection.sidecar_directory is None:
        advice = f"{PRUNE_HINT}, and {advice}"
    return Verdict(BLOCKED, f"{adapter.model_type} cannot load a stacked layout: {advice}")


def _unreadable(inspection: CheckpointInspection) -> str | None:
    if problem := routed_quantization_problem(inspection.quantization):
        return problem
    for layer in inspection.stacked.values():
        for parts in layer.values():
            for entry in parts.values():
                if entry.dtype not in EXPERT_DTYPES:
                    return f"expert tensors of dtype {entry.dtype} cannot be read: convert the checkpoint"
    return None


def _unprunable(inspection: CheckpointInspection) -> str | None:
    """Why what mach-prune would make could not be loaded, or None, also where that shows only as it runs.

    It takes weights from files of any name, and widens fp8 ones, whose scales have no place in a model.
    """
    for config in (inspection.config, inspection.text_config):
        declared = config.values.get("quantization_config")
        foreign = isinstance(declared, dict) and declared.get("quant_method") not in BLOCK_MODES
        if foreign and "quantization" not in config.values:
            return None
    renamed = os.path.join(inspection.directory, f"{WEIGHTS_PREFIX}*.safetensors")
    others = {
        name: entry
        if os.path.basename(entry.file).startswith(WEIGHTS_PREFIX)
        else entry._replace(file=renamed)
        for name, entry in inspection.others.items()
    }
    return weights_problem(
        inspection.adapter.model_type, inspection.config, inspection.text_config, inspection.shape, others
    )


def _incomplete(inspection: CheckpointInspection) -> str | None:
    """Why the weights besides routed experts cannot be loaded, or None, also where no header was read."""
    if not inspection.headers_read:
        return None
    model_type, text = inspection.adapter.model_type, inspection.text_config
    return weights_problem(model_type, inspection.config, text, inspection.shape, inspection.others)


def _in_engine(path: str, verdict: Verdict) -> Verdict:
    if path in ENGINE_PATHS or verdict.status == NOT_APPLICABLE:
        return verdict
    return Verdict(BLOCKED, f"not in this version of mach ({verdict.reason})")
