"""Owns `mach check`'s report: it gathers what the probes, gates and models say into one JSON-ready document.

The document's form is `docs/check-report.schema.json`; a change to it raises SCHEMA_VERSION.
"""

from __future__ import annotations

import math
import os
import shlex
from typing import Any, NamedTuple

from mach.errors import CheckpointNotFoundError, CommandError, UnknownArchitectureError
from mach.io.arch_adapter import MoeArchAdapter
from mach.io.arch_registry import REGISTRY, arch_summary
from mach.io.checkpoint_path import bundled_directory, checkpoint_directory
from mach.io.inspection import CheckpointInspection, inspect_checkpoint
from mach.io.tokenizer_files import TOKENIZER_FILES, has_tokenizer, tokenizer_problem
from mach.preflight.bandwidth import cached_bandwidth, remember_bandwidth
from mach.preflight.draft_probe import DraftProbe, probe_draft
from mach.preflight.gates import (
    BF16_VARIABLE,
    BLOCKED,
    ENGINE_PATHS,
    NEEDS_ARTIFACT,
    OK,
    Verdict,
    load_gate,
    unswapped_gate,
)
from mach.preflight.kv_cache_bytes import context_length
from mach.preflight.machine import this_machine
from mach.preflight.memory import NOTHING_ASKED, MemoryEstimate, ModeEstimate, estimate_memory
from mach.preflight.memory_plan import MemoryBudgets, MemoryPlan
from mach.preflight.path_matrix import PATHS, architecture_matrix, judge_paths
from mach.preflight.sidecar_probe import SidecarProbe, probe_sidecar, sidecar_quantization
from mach.preflight.speed import SpeedEstimate, estimate_speed
from mach.settings import CoreSettings
from mach.version import __version__

SCHEMA_VERSION = 1
_RESIDENCIES = {
    "expert_streaming": "streaming",
    "resident_stacked": "stacked",
    "bf16_streaming": "bf16_streaming",
    "unswapped": "unswapped",
}
SERVING_PATHS = ("openai_http", "expert_streaming", "resident_stacked", "bf16_streaming")
Report = dict[str, Any]

_NO_TOKENIZER = Verdict(
    NEEDS_ARTIFACT,
    f"no tokenizer (looked for {', '.join(TOKENIZER_FILES)}): copy it from the model that this checkpoint "
    "was made from",
)


class CheckOptions(NamedTuple):
    """What the command line says besides the model.

    Attributes:
        draft_dir: directory to probe for a draft.
        context_length: tokens for the key-value estimate.
        expert_cache_gb: bank budget in 10⁹ bytes; this and the next three as in docs/memory.md.
        memory_gb: everything together.
        prefill_scratch_gb: the arena of long prompts.
        kv_cache_gb: keys and values.
        local_only: never touch the network.
        revision: hub revision.
        measure_disk: measure bandwidths now instead of using the last measurement.
    """

    draft_dir: str | None = None
    context_length: int | None = None
    expert_cache_gb: float | None = None
    memory_gb: float | None = None
    prefill_scratch_gb: float | None = None
    kv_cache_gb: float | None = None
    local_only: bool = False
    revision: str = "main"
    measure_disk: bool = False

    @property
    def budgets(self) -> MemoryBudgets:
        """The budgets in bytes."""
        asked = (self.memory_gb, self.expert_cache_gb, self.prefill_scratch_gb, self.kv_cache_gb)
        return MemoryBudgets(*(None if value is None else int(value * 1e9) for value in asked))


class _Subject(NamedTuple):
    """The checkpoint in question: where it was found, and what its files say."""

    source: str
    directory: str | None
    commit: str | None
    inspection: CheckpointInspection
    sidecar: SidecarProbe
    tokenizer: Verdict
    notes: tuple[str, ...]


def architecture_report() -> Report:
    """The matrix of every registered architecture."""
    return {
        "schema_version": SCHEMA_VERSION,
        "mach_version": __version__,
        "engine_paths": [path for path in PATHS if path in ENGINE_PATHS],
        "architectures": {
            model_type: {
                "loadable": load_gate(REGISTRY[model_type]).status == OK,
                "paths": _paths(verdicts),
            }
            for model_type, verdicts in architecture_matrix().items()
        },
    }


def check_report(model: str, options: CheckOptions, settings: CoreSettings) -> Report:
    """The report on one checkpoint: a directory, an installed name, or a hub repository.

    Raises:
        MachError: there is no such checkpoint, or its files cannot be understood. An architecture that is
            not registered is a report, not an error.
    """
    try:
        subject = _subject(model, options, settings)
    except UnknownArchitectureError as error:
        return _unsupported(model, error)
    inspection, adapter = subject.inspection, subject.inspection.adapter
    draft = None
    if options.draft_dir is not None:
        draft = probe_draft(options.draft_dir, adapter, inspection.shape)
    verdicts = judge_paths(adapter, inspection, subject.sidecar, draft)
    if subject.tokenizer.status != OK:
        # No path starts without one; those that are blocked anyway keep their own reason.
        verdicts |= {path: subject.tokenizer for path in SERVING_PATHS if verdicts[path].status == OK}
    memory = _memory(subject, options, draft)
    if memory is not None:
        top_k, sizes = inspection.shape.top_k, memory.experts
        for path, bank, least in (
            ("expert_streaming", memory.bank_bytes, sizes.least_bank(top_k)),
            ("bf16_streaming", memory.float_bank_bytes, sizes.least_float_bank(top_k)),
        ):
            verdicts[path] = _with_budget(verdicts[path], bank, least, options)
    unswapped = unswapped_gate(adapter, inspection)
    if memory is not None:
        refused = _refused_by_plan({**verdicts, "unswapped": unswapped}, memory, options)
        unswapped = refused.pop("unswapped", unswapped)
        verdicts |= refused
    supported = OK in (verdicts["expert_streaming"].status, verdicts["resident_stacked"].status)
    mode = "resident" if verdicts["expert_streaming"].status != OK and supported else "streaming"
    speed = _speed(subject, memory, options, settings) if mode == "streaming" else None
    reason = "registered architecture" if supported else verdicts["expert_streaming"].reason
    if not supported and verdicts["openai_http"].status == OK:
        others = (verdicts["bf16_streaming"], unswapped)
        if OK not in (verdict.status for verdict in others):
            verdicts["openai_http"] = verdicts["expert_streaming"]
    return {
        "schema_version": SCHEMA_VERSION,
        "mach_version": __version__,
        "model": model,
        "source": subject.source,
        "commit": subject.commit,
        "model_type": adapter.model_type,
        "supported": supported,
        "reason": reason,
        "arch": arch_summary(adapter),
        "layout": {"kind": inspection.layout, "reason": inspection.layout_reason},
        "quantization": _quantization(subject),
        "shape": inspection.shape._asdict() | {"moe_layers": len(inspection.shape.moe_layers)},
        "artifacts": {"sidecar": _sidecar(subject.sidecar), "draft_dir": _draft(draft)},
        "memory": _memory_block(inspection, memory, mode, adapter),
        "speed": _speed_block(speed),
        "paths": _paths(verdicts),
        "serve_command": _serve_command(model, subject, mode, memory, options) if supported else None,
        "notes": [
            *subject.notes,
            *_download_note(model, subject),
            *_other_ways(model, subject, verdicts, unswapped),
        ],
    }


def _subject(model: str, options: CheckOptions, settings: CoreSettings) -> _Subject:
    source = "local"
    directory: str | None = model
    if not os.path.lexists(model):
        source, directory = "bundled", bundled_directory(model)
    if directory is None:
        # Networking costs more to import than a whole local check takes.
        from mach.preflight.hub_checkpoint import fetch_hub_checkpoint, is_repo_id  # noqa: PLC0415

        if options.local_only and is_repo_id(model):
            raise CheckpointNotFoundError(
                f"{model!r} is not a directory here, and --local-only forbids asking the hub", path=model
            )
        if not is_repo_id(model):
            checkpoint_directory(model)  # raises, and says what is installed
        hub = fetch_hub_checkpoint(model, options.revision, settings)
        inspection = hub.inspection()
        return _Subject(
            source="hub",
            directory=None,
            commit=hub.commit or None,
            inspection=inspection,
            sidecar=hub.sidecar(inspection),
            tokenizer=_hub_tokenizer(hub.has_tokenizer),
            notes=hub.notes,
        )
    path = checkpoint_directory(directory, tokenizer=False)
    inspection = inspect_checkpoint(path)
    return _Subject(
        source=source,
        directory=path,
        commit=None,
        inspection=inspection,
        sidecar=probe_sidecar(inspection),
        tokenizer=_tokenizer(path),
        notes=(),
    )


def _hub_tokenizer(there: bool | None) -> Verdict:
    if there is None:
        return Verdict(OK, "not looked at")
    return Verdict(OK, "a tokenizer is there") if there else _NO_TOKENIZER


def _tokenizer(path: str) -> Verdict:
    if not has_tokenizer(path):
        return _NO_TOKENIZER
    problem = tokenizer_problem(path)
    return Verdict(OK, "tokenizer files are there") if problem is None else Verdict(BLOCKED, problem)


def _unsupported(model: str, error: UnknownArchitectureError) -> Report:
    return {
        "schema_version": SCHEMA_VERSION,
        "mach_version": __version__,
        "model": model,
        "source": None,
        "commit": None,
        "model_type": error.model_type[:200],
        "supported": False,
        "reason": str(error),
        "arch": None,
        "layout": None,
        "quantization": None,
        "shape": None,
        "artifacts": None,
        "memory": None,
        "speed": None,
        "paths": [],
        "serve_command": None,
        "notes": [],
    }


def _memory(subject: _Subject, options: CheckOptions, draft: DraftProbe | None) -> MemoryEstimate | None:
    inspection = subject.inspection
    if not inspection.headers_read or not inspection.tensors:
        return None
    return estimate_memory(
        inspection,
        subject.sidecar.layout,
        this_machine(),
        context=context_length(inspection.adapter, inspection.config, options.context_length),
        budgets=options.budgets,
        draft_bytes=draft.nbytes if draft is not None and draft.usable else 0,
    )


def _with_budget(verdict: Verdict, bank: int, least: int, options: CheckOptions) -> Verdict:
    """The loader refuses a bank that holds less than one token's experts; so does the report."""
    if verdict.status != OK or options.expert_cache_gb is None or bank >= least:
        return verdict
    return Verdict(
        BLOCKED,
        f"--expert-cache-gb {options.expert_cache_gb:g} holds less than one token's experts: at least "
        f"{_gigabytes_up(least):g}",
    )


def _refused_by_plan(
    verdicts: dict[str, Verdict], memory: MemoryEstimate, options: CheckOptions
) -> dict[str, Verdict]:
    """The paths that loading refuses because a budget that was asked for cannot be kept."""
    refused = {}
    for path, residency in _RESIDENCIES.items():
        plan = memory.plans.get(residency)
        asked = options.budgets
        if residency in ("stacked", "unswapped"):
            asked = MemoryBudgets(asked.total, kv_cache=asked.kv_cache)
        if plan is None or plan.problem is None or asked == NOTHING_ASKED or verdicts[path].status != OK:
            continue
        refused[path] = Verdict(BLOCKED, plan.problem)
    return refused


def _speed(
    subject: _Subject, memory: MemoryEstimate | None, options: CheckOptions, settings: CoreSettings
) -> SpeedEstimate | None:
    if memory is None or not memory.experts.layer_records:
        if options.measure_disk:
            raise CommandError(
                "--measure-disk: the experts' sizes are not known, so there is nothing to predict"
            )
        return None
    directory = subject.directory or settings.cache_root
    if options.measure_disk:
        from mach.preflight.bandwidth_probe import measure_bandwidth  # noqa: PLC0415 - seldom asked for

        record = max(memory.experts.layer_records.values())
        bandwidth = measure_bandwidth(directory, record, settings.cache_root)
        remember_bandwidth(settings.cache_root, directory, bandwidth)
    elif (cached := cached_bandwidth(settings.cache_root, directory)) is not None:
        bandwidth = cached
    else:
        return None
    return estimate_speed(subject.inspection, memory, bandwidth)


def _serve_command(
    model: str, subject: _Subject, mode: str, memory: MemoryEstimate | None, options: CheckOptions
) -> str:
    target = _download_directory(model) if subject.source == "hub" else model
    words = ["mach-serve", "--checkpoint", target]
    common = {"--memory-gb": options.memory_gb, "--kv-cache-gb": options.kv_cache_gb}
    told = [word for flag, value in common.items() if value is not None for word in (flag, f"{value:g}")]
    if mode == "resident":
        return shlex.join([*words, "--no-streaming", "--target-only", *told])
    words += ["--streaming", "--target-only", *told]
    if options.prefill_scratch_gb is not None:
        words += ["--prefill-scratch-gb", f"{options.prefill_scratch_gb:g}"]
    if options.expert_cache_gb is not None:
        words += ["--expert-cache-gb", f"{options.expert_cache_gb:g}"]
    elif memory is not None and options.memory_gb is None:
        least = memory.experts.least_bank(subject.inspection.shape.top_k)
        if memory.bank_bytes < least:
            words += ["--expert-cache-gb", f"{_gigabytes_up(least):g}"]
    return shlex.join(words)


def _download_note(model: str, subject: _Subject) -> list[str]:
    if subject.source != "hub":
        return []
    target = shlex.quote(_download_directory(model))
    return [f"download it first: hf download {model} --local-dir {target}"]


def _other_ways(model: str, subject: _Subject, verdicts: dict[str, Verdict], unswapped: Verdict) -> list[str]:
    """How else to serve what neither streaming nor resident serving takes."""
    if OK in (verdicts["expert_streaming"].status, verdicts["resident_stacked"].status):
        return []
    target = shlex.quote(_download_directory(model) if subject.source == "hub" else model)
    ways = []
    if verdicts["bf16_streaming"].status == OK:
        ways.append(f"for comparisons: {BF16_VARIABLE}=1 mach-serve {target} --streaming")
    if verdicts["openai_http"].status == OK == unswapped.status:
        ways.append(f"as mlx-lm has it, whole in memory: mach-serve {target} --backend openai")
    return ways


def _download_directory(model: str) -> str:
    return "./" + model.rpartition("/")[2]


def _gigabytes_up(size: int) -> float:
    """10⁹ bytes, rounded up to a thousandth."""
    return math.ceil(size / 1e6) / 1e3


def _paths(verdicts: dict[str, Verdict]) -> list[Report]:
    return [
        {"path": path, "status": verdict.status, "reason": verdict.reason}
        for path, verdict in verdicts.items()
    ]


def _quantization(subject: _Subject) -> Report:
    quantization = subject.inspection.quantization
    if subject.sidecar.layout is not None:
        quantization = sidecar_quantization(subject.sidecar.layout)
    return {
        "label": quantization.label,
        "mode": quantization.mode,
        "bits": quantization.bits,
        "group_size": quantization.group_size,
        "uniform": quantization.uniform,
    }


def _sidecar(probe: SidecarProbe) -> Report:
    return {"present": probe.present, "valid": probe.valid, "reason": probe.reason}


def _draft(probe: DraftProbe | None) -> Report | None:
    if probe is None:
        return None
    return {"path": probe.path, "usable": probe.usable, "reason": probe.reason, "bytes": probe.nbytes}


def _memory_block(
    inspection: CheckpointInspection, memory: MemoryEstimate | None, mode: str, adapter: MoeArchAdapter
) -> Report:
    if memory is None:
        return {
            "verdict": "unknown",
            "note": "estimate unavailable: the weights' headers could not be read",
            "estimate": None,
        }
    machine, sizes = memory.machine, memory.experts
    chosen = memory.resident if mode == "resident" else memory.streaming
    note = None
    if chosen.verdict == "unknown":
        note = f"no verdict: this machine's memory is not known ({machine.source})"
    elif adapter.kv_cache_kind == "compressed":
        note = "the KV size of a compressed cache is an estimate from the configuration"
    return {
        "verdict": chosen.verdict,
        "note": note,
        "estimate": {
            "mode": mode,
            "machine": {name: value for name, value in machine._asdict().items() if name != "kernels"},
            "context_length": memory.context,
            "kv_bytes": memory.kv.total,
            "kv_parts": memory.kv.parts,
            "expert_bytes_on_disk": sizes.total_records,
            "expert_bytes_in_memory": sizes.total_slots,
            "expert_bytes_per_layer": {
                str(layer): size * sizes.experts for layer, size in sorted(sizes.layer_slots.items())
            },
            "other_bytes_on_disk": inspection.other_bytes,
            "unused_bytes_on_disk": inspection.unused_bytes,
            "expert_cache_bytes": memory.bank_bytes,
            "expert_cache_share": round(memory.bank_share, 4),
            "expert_cache_least_bytes": sizes.least_bank(inspection.shape.top_k),
            "streaming": _mode_block(memory.streaming, memory.plans["streaming"]),
            "resident": _mode_block(memory.resident, memory.plans["stacked"]),
            "bf16_streaming": None
            if memory.bf16_streaming is None
            else _mode_block(memory.bf16_streaming, memory.plans["bf16_streaming"]),
            "unswapped": _mode_block(memory.unswapped, memory.plans["unswapped"]),
        },
    }


def _mode_block(mode: ModeEstimate, plan: MemoryPlan) -> Report:
    return {
        "verdict": mode.verdict,
        "working_set_bytes": mode.working_set,
        "parts": mode.parts,
        "plan": {
            "parts": plan.parts,
            "asked": plan.told,
            "planned_bytes": plan.needed,
            "limit_bytes": plan.limit,
            "limit_source": plan.limit_source,
            "tokens": plan.tokens,
            "problem": plan.problem,
        },
    }


def _speed_block(speed: SpeedEstimate | None) -> Report | None:
    if speed is None:
        return None
    return {
        "estimate": True,
        "tokens_per_second": [round(value, 2) for value in speed.tokens_per_second],
        "hit_rate": [round(value, 4) for value in speed.hit_rate],
        "active_bytes_per_token": speed.active_bytes,
        "miss_bytes_per_token": list(speed.miss_bytes),
        "disk_bytes_per_second": round(speed.bandwidth.disk),
        "memory_bytes_per_second": round(speed.bandwidth.memory),
        "measured": speed.bandwidth.measured,
    }
