"""Owns the choice of a residency mode and the opening of its expert store, within the machine's memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

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
from mach.preflight.memory_needs import memory_needs
from mach.preflight.memory_plan import MemoryBudgets, MemoryNeeds, MemoryPlan, plan_memory
from mach.preflight.sidecar_probe import match_config
from mach_decode.errors import ResidencyError
from mach_decode.loaded_model import SwappedStore
from mach_decode.memory_flags import MemoryFlags
from mach_decode.memory_refusal import admitted_plan
from mach_store.bank_cache import BankCache
from mach_store.bank_form import BankForm, StoredForm, kernels_take_schema
from mach_store.bf16_form import Bf16Form
from mach_store.cpu_kernels import CpuKernels
from mach_store.direct_choice import NOTHING_STREAMED, DirectChoice, asked_choice, choose_direct
from mach_store.expert_arrays import slot_bytes
from mach_store.expert_source import ExpertSource
from mach_store.load_progress import LoadListener, unheard
from mach_store.machine_memory import available_memory
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
    flags: MemoryFlags,
    kernels: CpuKernels,
) -> str:
    """The mode to load in: what was asked for; without a wish, stacked where checkpoint and memory allow it.

    Args:
        asked: one of RESIDENCIES, or None.
        inspection: the checkpoint.
        settings: `LME_BF16_STACKED_STREAMING` makes streaming bf16_streaming.
        flags: budgets of bank and arena only mean something while streaming.
        kernels: what computes the experts.

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
    streams = flags.expert_cache_gb is not None or flags.prefill_scratch_gb is not None
    if inspection.layout != "stacked" or inspection.sidecar_directory is not None or streams:
        return "streaming"
    if resident_gate(inspection.adapter, inspection).status != OK:
        return "streaming"
    available = available_memory()
    budgets = flags.budgets("stacked", settings)
    plan = plan_memory(resident_needs(inspection, kernels), budgets, available.nbytes, available.source)
    return "stacked" if plan.problem is None else "streaming"


class OpenedStore(NamedTuple):
    """An expert store, the reader that it streams through (None if it does not), and the plan it follows."""

    store: SwappedStore
    reader: ScatterReader | None
    plan: MemoryPlan
    direct: DirectChoice


def open_store(
    inspection: CheckpointInspection,
    settings: StoreSettings,
    expert_residency: str,
    flags: MemoryFlags,
    kernels: CpuKernels,
    listener: LoadListener = unheard,
) -> OpenedStore:
    """The expert store of a mode, within the machine's memory and the budgets asked for.

    What the `kernels` can compute with as it is stored is held so.

    Raises:
        ResidencyError: the preflight's gate blocks the mode, or a flag or setting does not go with it.
        MemoryBudgetError: the budget is too small for one token, or too big for the machine.
        StoreError: the experts' files are not usable.
    """
    budgets = flags.budgets(expert_residency, settings)
    if expert_residency == "stacked":
        return _open_resident(inspection, settings, budgets, kernels, listener)
    if settings.decode_residency and not settings.use_gather_dispatch:
        raise ResidencyError(
            "LME_DECODE_RESIDENCY is about the bank, which LME_USE_GATHER_DISPATCH=0 leaves unused: unset one"
        )
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
        needs = _streaming_needs(inspection, expert_residency, source, form)
        plan = admitted_plan(inspection.directory, needs, budgets)
        direct = _choose_direct(source, reader, form, settings, plan)
        if direct.direct != reader.direct:
            assert isinstance(source, SidecarSource), "only a sidecar's records are read past the page cache"
            buffered, source, reader = source, source.direct_twin(), reader.with_direct(True)
            buffered.close()
        cache = BankCache(
            source,
            reader,
            budget_bytes=plan.bank,
            top_k=inspection.shape.top_k,
            compute=compute,
            scratch_experts=plan.scratch_experts,
            form=form,
            policy=settings.eviction_policy,
            reclaim="reclaim" in settings.decode_residency,
            no_prefetch=_no_prefetch(settings, reader),
        )
    except BaseException:
        source.close()
        raise
    return OpenedStore(cache, reader, plan, direct)


def _no_prefetch(settings: StoreSettings, reader: ScatterReader) -> str | None:
    """Why experts are not read ahead, as far as settings decide it."""
    if settings.async_prefetch is False:
        return "switched off by LME_ASYNC_PREFETCH=0"
    if settings.async_prefetch is None and not reader.direct:
        return (
            "experts are read through the page cache, which keeps processors busy that could compute "
            "(LME_ASYNC_PREFETCH=1 reads ahead all the same)"
        )
    return None


def _choose_direct(
    source: ExpertSource, reader: ScatterReader, form: BankForm, settings: StoreSettings, plan: MemoryPlan
) -> DirectChoice:
    if settings.direct_io is not None:
        return asked_choice(settings.direct_io)
    left = available_memory().nbytes - plan.needed
    return choose_direct(source, reader, form, bank_bytes=plan.bank, left_bytes=left)


def _open_resident(
    inspection: CheckpointInspection,
    settings: StoreSettings,
    budgets: MemoryBudgets,
    kernels: CpuKernels,
    listener: LoadListener,
) -> OpenedStore:
    _require("stacked", inspection)
    if not settings.use_gather_dispatch:
        raise ResidencyError("LME_USE_GATHER_DISPATCH=0 needs --streaming: leave it out with --no-streaming")
    if settings.direct_io:
        raise ResidencyError("LME_DIRECT_IO=1 needs --streaming: leave it out with --no-streaming")
    if settings.decode_residency:
        raise ResidencyError("LME_DECODE_RESIDENCY needs --streaming: leave it out with --no-streaming")
    plan = admitted_plan(inspection.directory, resident_needs(inspection, kernels), budgets)
    store = ResidentStackedExpertCache(inspection, compute_dtype(), kernels, listener)
    return OpenedStore(store, None, plan, NOTHING_STREAMED)


def resident_needs(inspection: CheckpointInspection, kernels: CpuKernels) -> MemoryNeeds:
    """What `--no-streaming` takes for a stacked checkpoint."""
    schemas, num_experts = stacked_schemas(inspection)
    experts = num_experts * sum(
        slot_bytes(schema, mx.bfloat16 if kernels_take_schema(schema, kernels) else compute_dtype())
        for schema in schemas.values()
    )
    return memory_needs(
        inspection, floats_as(), "stacked", experts=experts, least_bank=experts, scratch=lambda _: 0
    )


def _streaming_needs(
    inspection: CheckpointInspection, residency: str, source: ExpertSource, form: BankForm
) -> MemoryNeeds:
    slots = sum(form.slot_bytes(schema) for schema in source.schemas.values())
    kinds = set(source.schemas.values())
    return memory_needs(
        inspection,
        floats_as(),
        residency,
        experts=slots * source.num_experts,
        least_bank=slots * inspection.shape.top_k,
        scratch=lambda experts: sum(form.scratch_bytes(schema, experts) for schema in kinds),
        narrow=any(map(form.narrow, kinds)),
    )


def floats_as() -> str:
    """The preflight's backend whose floats are as wide as this process's: `cpu` where all are float32."""
    return "cpu" if compute_dtype() == mx.float32 else "metal"


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
