"""Owns the choice of a residency mode and the opening of its expert store, within the machine's memory."""

from __future__ import annotations

import sys
from collections.abc import Callable

import mlx.core as mx

from mach.io.inspection import CheckpointInspection
from mach.io.raw_experts import RAW_LAYOUTS
from mach.preflight.gates import (
    OK,
    PRUNE_HINT,
    Verdict,
    bf16_streaming_gate,
    resident_gate,
    streaming_gate,
)
from mach.preflight.sidecar_probe import match_config
from mach_decode.errors import ResidencyError
from mach_decode.loaded_model import SwappedStore
from mach_decode.memory_refusal import RESERVE_BYTES, refuse_if_too_big
from mach_store.bank_cache import BankCache
from mach_store.bank_form import BankForm, StoredForm, kernels_take_schema
from mach_store.bf16_form import Bf16Form
from mach_store.cpu_kernels import CpuKernels
from mach_store.expert_arrays import slot_bytes
from mach_store.expert_source import ExpertSource
from mach_store.machine_memory import available_bytes
from mach_store.model_builder import compute_dtype
from mach_store.raw_source import RawSource
from mach_store.resident_cache import ResidentStackedExpertCache
from mach_store.scatter_reader import ScatterReader, open_reader
from mach_store.settings import StoreSettings
from mach_store.sidecar.sidecar_source import SidecarSource
from mach_store.stacked_source import StackedSource, stacked_schemas

RESIDENCIES = ("streaming", "stacked", "bf16_streaming")
_GATES = {"streaming": streaming_gate, "stacked": resident_gate, "bf16_streaming": bf16_streaming_gate}
_FLAGS = {"streaming": "--streaming", "stacked": "--no-streaming", "bf16_streaming": "bf16_streaming"}


def choose_residency(
    asked: str | None,
    inspection: CheckpointInspection,
    settings: StoreSettings,
    expert_cache_gb: float | None,
) -> str:
    """The mode to load in: what was asked for; without a wish, stacked where checkpoint and memory allow it.

    Args:
        asked: one of RESIDENCIES, or None.
        inspection: the checkpoint.
        settings: `LME_BF16_STACKED_STREAMING` makes streaming bf16_streaming.
        expert_cache_gb: a budget only means something while streaming.

    Raises:
        ResidencyError: there is no such mode, or flag and variable contradict each other.
    """
    if asked is not None and asked not in RESIDENCIES:
        raise ResidencyError(f"expert_residency={asked!r}: must be one of {', '.join(RESIDENCIES)}")
    if settings.bf16_stacked_streaming:
        if asked == "stacked":
            raise ResidencyError("LME_BF16_STACKED_STREAMING=1 goes with --streaming, not --no-streaming")
        return "bf16_streaming"
    if asked is not None:
        return asked
    whole = 2 * inspection.expert_bytes + inspection.other_bytes + RESERVE_BYTES
    fits = inspection.layout == "stacked" and whole <= available_bytes()
    wanted = fits and inspection.sidecar_directory is None and expert_cache_gb is None
    return "stacked" if wanted else "streaming"


def open_store(
    inspection: CheckpointInspection,
    settings: StoreSettings,
    expert_residency: str,
    expert_cache_gb: float | None,
    kernels: CpuKernels,
) -> tuple[SwappedStore, ScatterReader | None]:
    """The expert store of a mode, and the reader that it streams through.

    What the `kernels` can compute with as it is stored is held so.

    Raises:
        ResidencyError: the preflight's gate blocks the mode, or a setting does not go with it.
        MemoryBudgetError: the budget is too small for one token, or too big for the machine.
        StoreError: the experts' files are not usable.
    """
    if expert_residency == "stacked":
        return _open_resident(inspection, settings, expert_cache_gb, kernels), None
    if expert_residency == "bf16_streaming" or inspection.sidecar_directory is None:
        # A sidecar answers for itself when it is opened, and names the file and the field at fault; what is
        # wrong with the other weights is asked after that.
        _require(expert_residency, inspection)
    reader = open_reader(settings)
    compute = compute_dtype()
    form: BankForm
    if expert_residency == "bf16_streaming":
        form = Bf16Form(compute, reader, kernels)
        source = _open_slices(
            inspection, reader, RawSource if inspection.layout in RAW_LAYOUTS else StackedSource
        )
    else:
        form = StoredForm(compute, reader, kernels)
        source = _open_source(inspection, settings, reader)
    try:
        if inspection.sidecar_directory is not None:
            _require(expert_residency, inspection)
        cache = BankCache(
            source,
            reader,
            budget_bytes=_budget(inspection, source, form, expert_cache_gb),
            top_k=inspection.shape.top_k,
            compute=compute,
            scratch_experts=settings.scratch_experts,
            form=form,
        )
    except BaseException:
        source.close()
        raise
    return cache, reader


def _open_resident(
    inspection: CheckpointInspection,
    settings: StoreSettings,
    expert_cache_gb: float | None,
    kernels: CpuKernels,
) -> ResidentStackedExpertCache:
    if expert_cache_gb is not None:
        raise ResidencyError("--expert-cache-gb bounds the streaming bank: it cannot go with --no-streaming")
    _require("stacked", inspection)
    if not settings.use_gather_dispatch:
        raise ResidencyError("LME_USE_GATHER_DISPATCH=0 needs --streaming: leave it out with --no-streaming")
    schemas, num_experts = stacked_schemas(inspection)
    held = {
        schema: mx.bfloat16 if kernels_take_schema(schema, kernels) else compute_dtype()
        for schema in schemas.values()
    }
    wanted = num_experts * sum(slot_bytes(schema, held[schema]) for schema in schemas.values())
    _refuse_if_too_big(inspection, wanted, "the experts", "use --streaming")
    return ResidentStackedExpertCache(inspection, compute_dtype(), kernels)


def _open_source(
    inspection: CheckpointInspection, settings: StoreSettings, reader: ScatterReader
) -> ExpertSource:
    if inspection.sidecar_directory is not None:
        sidecar = SidecarSource(
            inspection.sidecar_directory, direct=reader.direct, verify=settings.verify_reads
        )
        try:
            match_config(sidecar.layout, inspection, inspection.sidecar_directory)
        except BaseException:
            sidecar.close()
            raise
        return sidecar
    source = _open_slices(inspection, reader, StackedSource)
    print(
        f"mach: {inspection.directory} has the stacked layout: streaming reads lazy per-expert slices of "
        "it, not resident stacked banks; export a sidecar for aligned, checksummed records, or use "
        "--no-streaming to keep every expert in memory",
        file=sys.stderr,
    )
    return source


def _open_slices(
    inspection: CheckpointInspection,
    reader: ScatterReader,
    kind: Callable[[CheckpointInspection], ExpertSource],
) -> ExpertSource:
    if reader.direct:
        raise ResidencyError(
            f"{inspection.directory}: LME_DIRECT_IO=1 needs the aligned records of a sidecar, not slices of "
            f"{inspection.layout} tensors: {PRUNE_HINT}, and use --streaming"
        )
    return kind(inspection)


def _require(residency: str, inspection: CheckpointInspection) -> None:
    """Refuse what the preflight's gate refuses, with its reason."""
    verdict: Verdict = _GATES[residency](inspection.adapter, inspection)
    if verdict.status == OK:
        return
    others = (name for name in ("streaming", "stacked") if name != residency)
    working = [_FLAGS[name] for name in others if _GATES[name](inspection.adapter, inspection).status == OK]
    told = all(flag in verdict.reason for flag in working)
    hint = "" if told else f"; {' and '.join(working)} work{'s' * (len(working) == 1)}"
    raise ResidencyError(f"{inspection.directory}: {_FLAGS[residency]}: {verdict.reason}{hint}")


def _budget(
    inspection: CheckpointInspection, source: ExpertSource, form: BankForm, expert_cache_gb: float | None
) -> int:
    """The bank's budget in bytes; explicit ones are checked against the machine."""
    everything = sum(form.slot_bytes(schema) for schema in source.schemas.values()) * source.num_experts
    if expert_cache_gb is None:
        free = available_bytes() - inspection.other_bytes - RESERVE_BYTES
        return max(0, min(everything, free // 2))
    if not 0 < expert_cache_gb < 1e6:
        raise ResidencyError(f"--expert-cache-gb {expert_cache_gb}: must be a positive number of 10⁹ bytes")
    budget = int(expert_cache_gb * 1e9)
    _refuse_if_too_big(inspection, min(budget, everything), "the expert cache", "lower --expert-cache-gb")
    return budget


def _refuse_if_too_big(inspection: CheckpointInspection, wanted: int, what: str, advice: str) -> None:
    parts = {what: wanted, "the other weights": inspection.other_bytes}
    refuse_if_too_big(inspection.directory, parts, advice)
