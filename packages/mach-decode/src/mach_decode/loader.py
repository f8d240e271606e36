"""Owns the load pipeline: detect, open the expert store, build the model, swap, load the rest."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx_lm import load as mlx_lm_load
from mlx_lm.utils import load_config, load_tokenizer

from mach.io.inspection import CheckpointInspection, find_sidecar, inspect_checkpoint
from mach.preflight.gates import OK, Verdict, resident_gate, streaming_gate
from mach.preflight.sidecar_probe import match_config
from mach_decode.checkpoint_download import obtain_checkpoint
from mach_decode.errors import DecodeError, ResidencyError, TokenizerError
from mach_decode.kv_cache import KVCacheFactory
from mach_store.bank_cache import BankCache
from mach_store.cpu_kernels import open_kernels
from mach_store.dense_kernels import use_dense_kernels
from mach_store.disk_switch_glu import DiskSwitchGLU
from mach_store.errors import MemoryBudgetError
from mach_store.expert_arrays import slot_bytes
from mach_store.expert_source import ExpertSource
from mach_store.gather_switch_glu import GatherSwitchGLU
from mach_store.machine_memory import available_bytes
from mach_store.model_builder import build_model, compute_dtype
from mach_store.resident_cache import ResidentStackedExpertCache
from mach_store.row_kernels import use_row_kernels
from mach_store.scatter_reader import ScatterReader, open_reader
from mach_store.settings import StoreSettings
from mach_store.sidecar.sidecar_source import SidecarSource
from mach_store.stacked_source import StackedSource, stacked_schemas

ExpertStore = BankCache | ResidentStackedExpertCache
RESIDENCIES = ("streaming", "stacked")

_RESERVE_BYTES = 512 << 20
"""Kept free for the interpreter, the libraries, activations and KV (docs/architecture.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """Everything one load brought, and the facts that start-up lines and reports name.

    Attributes:
        directory: the checkpoint.
        name: what to call it: its directory's name.
        inspection: what its headers say.
        reader: how experts are read; None when nothing is streamed.
        dispatch: `gather` or `disk`.
        context_length: tokens that prompt and answer may have together.
        vocabulary_size: rows of the embedding.
    """

    directory: Path
    name: str
    inspection: CheckpointInspection
    model: nn.Module
    tokenizer: Any
    store: ExpertStore
    cache: KVCacheFactory
    reader: ScatterReader | None
    settings: StoreSettings
    dispatch: str
    context_length: int
    vocabulary_size: int


def load(checkpoint: str) -> tuple[nn.Module, Any]:
    """Any checkpoint that mlx-lm can load, whole and unswapped; `(model, tokenizer)`.

    Args:
        checkpoint: a directory, the name of an installed checkpoint, or a Hugging Face repo id.
    """
    directory = obtain_checkpoint(checkpoint)
    if find_sidecar(str(directory)) is not None and inspect_checkpoint(directory).layout == "sliced":
        raise ResidencyError(
            f"{directory}: its experts are in a sidecar, which mlx-lm does not read: use load_moe"
        )
    model, tokenizer = mlx_lm_load(str(directory))
    return model, tokenizer


def load_moe(
    checkpoint: str,
    arch: str | None = None,
    *,
    expert_residency: str = "streaming",
    expert_cache_gb: float | None = None,
) -> tuple[nn.Module, Any, ExpertStore, KVCacheFactory]:
    """A Mixture-of-Experts checkpoint with its experts in a store: `(model, tokenizer, store, cache)`.

    Args:
        checkpoint: a directory, or the name of an installed checkpoint.
        arch: the architecture expected; None takes the one that config.json names.
        expert_residency: `streaming` (a bank and the disk) or `stacked` (all in memory).
        expert_cache_gb: budget of the bank in 10⁹ bytes; None takes all experts or half of the free memory,
            whichever is less.

    Raises:
        MachError: every way in which a checkpoint, a budget or the machine can refuse.
    """
    loaded = load_streaming_or_stacked(
        checkpoint, arch, expert_residency=expert_residency, expert_cache_gb=expert_cache_gb
    )
    return loaded.model, loaded.tokenizer, loaded.store, loaded.cache


def default_residency(checkpoint: str) -> str:
    """The residency without a wish: stacked where checkpoint and memory allow it, else streaming.

    Raises:
        CheckpointError: the checkpoint is malformed.
    """
    inspection = inspect_checkpoint(obtain_checkpoint(checkpoint))
    whole = 2 * inspection.expert_bytes + inspection.other_bytes + _RESERVE_BYTES
    fits = inspection.layout == "stacked" and whole <= available_bytes()
    return "stacked" if fits and inspection.sidecar_directory is None else "streaming"


def load_streaming_or_stacked(
    checkpoint: str,
    arch: str | None = None,
    *,
    expert_residency: str,
    expert_cache_gb: float | None,
) -> LoadedModel:
    """As `load_moe`, with the facts of the load."""
    if expert_residency not in RESIDENCIES:
        raise ResidencyError(f"expert_residency={expert_residency!r}: must be {' or '.join(RESIDENCIES)}")
    directory = obtain_checkpoint(checkpoint)
    inspection = inspect_checkpoint(directory)
    adapter = inspection.adapter
    if arch is not None and arch != adapter.model_type:
        raise DecodeError(f"{directory}: is {adapter.model_type}, not {arch}")
    text = inspection.text_config
    context_length = text.integer("max_position_embeddings", low=1, high=1 << 31, default=4096)
    anywhere = text if text.find("vocab_size")[1] is not None else inspection.config
    vocabulary_size = anywhere.integer("vocab_size", low=1, high=1 << 24)
    tokenizer = _tokenizer(directory)
    settings = StoreSettings.from_environment()
    store, reader = _open_store(inspection, settings, expert_residency, expert_cache_gb)
    gather = settings.use_gather_dispatch
    kernels = open_kernels(settings)

    def swap(layer: int, original: nn.Module) -> nn.Module:
        if gather:
            return GatherSwitchGLU(
                store,
                layer,
                original.activation,
                transient_min_tokens=settings.transient_min_tokens,
                kernels=kernels,
            )
        assert isinstance(store, BankCache)
        return DiskSwitchGLU(store, layer, original.activation)

    try:
        model, _ = build_model(directory, adapter, inspection.shape.moe_layers, swap)
        use_dense_kernels(model, kernels)
        use_row_kernels(model, kernels)
        if isinstance(store, BankCache) and gather:
            store.prewarm()
    except BaseException:
        store.close()
        raise
    return LoadedModel(
        directory=directory,
        name=directory.name if Path(checkpoint).is_dir() else checkpoint,
        inspection=inspection,
        model=model,
        tokenizer=tokenizer,
        store=store,
        cache=KVCacheFactory(model),
        reader=reader,
        settings=settings,
        dispatch="gather" if gather else "disk",
        context_length=context_length,
        vocabulary_size=vocabulary_size,
    )


def _open_store(
    inspection: CheckpointInspection,
    settings: StoreSettings,
    expert_residency: str,
    expert_cache_gb: float | None,
) -> tuple[ExpertStore, ScatterReader | None]:
    if expert_residency == "stacked":
        if expert_cache_gb is not None:
            raise ResidencyError(
                "--expert-cache-gb bounds the streaming bank: it cannot go with --no-streaming"
            )
        _require(resident_gate(inspection.adapter, inspection), inspection, "--no-streaming")
        if not settings.use_gather_dispatch:
            raise ResidencyError(
                "LME_USE_GATHER_DISPATCH=0 needs --streaming: leave it out with --no-streaming"
            )
        schemas, num_experts = stacked_schemas(inspection)
        wanted = num_experts * sum(slot_bytes(schema, compute_dtype()) for schema in schemas.values())
        _refuse_if_too_big(inspection, wanted, "the experts", "use --streaming")
        return ResidentStackedExpertCache(inspection, compute_dtype()), None
    if inspection.sidecar_directory is None:
        # A sidecar answers for itself when it is opened, and names the file and the field at fault.
        _require(streaming_gate(inspection.adapter, inspection), inspection, "--streaming")
    reader = open_reader(settings)
    source: ExpertSource
    if inspection.sidecar_directory is not None:
        sidecar = SidecarSource(
            inspection.sidecar_directory, direct=reader.direct, verify=settings.verify_reads
        )
        try:
            match_config(sidecar.layout, inspection, inspection.sidecar_directory)
        except BaseException:
            sidecar.close()
            raise
        source = sidecar
    else:
        if reader.direct:
            raise ResidencyError(
                f"{inspection.directory}: LME_DIRECT_IO=1 needs the aligned records of a sidecar, and this "
                "checkpoint has none: export one with tools/export_expert_sidecar.py"
            )
        print(
            f"mach: {inspection.directory} has the stacked layout: streaming reads lazy per-expert slices of "
            "it, not resident stacked banks; export a sidecar for aligned, checksummed records, or use "
            "--no-streaming to keep every expert in memory",
            file=sys.stderr,
        )
        source = StackedSource(inspection)
    try:
        budget = _budget(inspection, source, expert_cache_gb)
        cache = BankCache(
            source,
            reader,
            budget_bytes=budget,
            top_k=inspection.shape.top_k,
            compute=compute_dtype(),
            scratch_experts=settings.scratch_experts,
        )
    except BaseException:
        source.close()
        raise
    return cache, reader


def _require(verdict: Verdict, inspection: CheckpointInspection, flag: str) -> None:
    """Refuse what the preflight's gate refuses, with its reason."""
    if verdict.status != OK:
        other = "--no-streaming" if flag == "--streaming" else "--streaming"
        gate = resident_gate if flag == "--streaming" else streaming_gate
        hint = f"; {other} works" if gate(inspection.adapter, inspection).status == OK else ""
        raise ResidencyError(f"{inspection.directory}: {flag}: {verdict.reason}{hint}")


def _budget(inspection: CheckpointInspection, source: ExpertSource, expert_cache_gb: float | None) -> int:
    """The bank's budget in bytes; explicit ones are checked against the machine."""
    everything = sum(slot_bytes(schema, compute_dtype()) for schema in source.schemas.values())
    everything *= source.num_experts
    if expert_cache_gb is None:
        free = available_bytes() - inspection.other_bytes - _RESERVE_BYTES
        return max(0, min(everything, free // 2))
    if not 0 < expert_cache_gb < 1e6:
        raise ResidencyError(f"--expert-cache-gb {expert_cache_gb}: must be a positive number of 10⁹ bytes")
    budget = int(expert_cache_gb * 1e9)
    _refuse_if_too_big(inspection, min(budget, everything), "the expert cache", "lower --expert-cache-gb")
    return budget


def _refuse_if_too_big(inspection: CheckpointInspection, wanted: int, what: str, advice: str) -> None:
    needed = wanted + inspection.other_bytes + _RESERVE_BYTES
    available = available_bytes()
    if needed > available:
        raise MemoryBudgetError(
            f"{inspection.directory}: {what} ({wanted / 1e9:.2f} GB), the other weights "
            f"({inspection.other_bytes / 1e9:.2f} GB) and {_RESERVE_BYTES / 1e9:.2f} GB for everything else "
            f"need {needed / 1e9:.2f} GB, but {available / 1e9:.2f} GB are free: {advice}",
            needed=needed,
            available=available,
        )


def _tokenizer(directory: Path) -> Any:
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise TokenizerError(f"{directory}: has no tokenizer.json or tokenizer.model")
    # mlx-lm's load reads end tokens from generation_config.json through the config: so does this.
    try:
        return load_tokenizer(
            directory,
            # The engine bounds prompts by the model's context; the tokenizer would only warn, on stderr.
            {"model_max_length": sys.maxsize},
            eos_token_ids=load_config(directory).get("eos_token_id"),
        )
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise TokenizerError(f"{directory}: the tokenizer cannot be loaded: {error}") from error
