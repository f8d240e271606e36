"""Owns the load pipeline: detect, open the expert store, build the model, swap, load the rest."""

from __future__ import annotations

from typing import Any

import mlx.nn as nn

from mach.io.inspection import CheckpointInspection, inspect_checkpoint
from mach.preflight.memory_needs import PREFILL_CHUNK, context_limit, kv_of, prefill_chunk
from mach_decode.checkpoint_download import obtain_checkpoint
from mach_decode.draft_settings import refuse_draft_settings
from mach_decode.errors import DecodeError
from mach_decode.kv_cache import KVCacheFactory
from mach_decode.loaded_model import SLOW_CHUNK, ExpertStore, LoadedModel, SwappedStore, display_name
from mach_decode.memory_flags import NO_BUDGETS, MemoryFlags
from mach_decode.store_opening import choose_residency, floats_as, open_store
from mach_decode.tokenizer_loading import load_checkpoint_tokenizer
from mach_decode.unswapped_loader import load_unswapped
from mach_decode.wired_memory import wire
from mach_store.bank_cache import BankCache
from mach_store.cpu_kernels import open_kernels, stock_kernels
from mach_store.disk_switch_glu import DiskSwitchGLU
from mach_store.gather_switch_glu import GatherSwitchGLU
from mach_store.load_progress import LoadListener, unheard
from mach_store.model_builder import build_model
from mach_store.model_kernels import use_kernels
from mach_store.next_router import foretell_routes
from mach_store.settings import StoreSettings


def load(checkpoint: str) -> tuple[nn.Module, Any]:
    """Any checkpoint that mlx-lm can load, whole, unswapped and in its own dtypes; `(model, tokenizer)`.

    Args:
        checkpoint: a directory, the name of an installed checkpoint, or a Hugging Face repo id.

    Raises:
        MachError: see `load_unswapped`.
    """
    loaded = load_unswapped(checkpoint, widen=False)
    return loaded.model, loaded.tokenizer


def load_moe(
    checkpoint: str,
    arch: str | None = None,
    *,
    expert_residency: str = "streaming",
    expert_cache_gb: float | None = None,
    memory_gb: float | None = None,
    prefill_scratch_gb: float | None = None,
    kv_cache_gb: float | None = None,
    wired_gb: float | None = None,
) -> tuple[nn.Module, Any, ExpertStore, KVCacheFactory]:
    """A Mixture-of-Experts checkpoint with its experts in a store: `(model, tokenizer, store, cache)`.

    Args:
        checkpoint: a directory, or the name of an installed checkpoint.
        arch: the architecture expected; None takes the one that config.json names.
        expert_residency: `streaming` (a bank and the disk), `stacked` (all in memory) or `bf16_streaming`
            (a bank of plain floats, from slices of stacked tensors; for comparisons).
        expert_cache_gb: budget of the bank in 10⁹ bytes; None takes all experts or half of the free memory,
            whichever is less, and under `memory_gb` what the other parts leave.
        memory_gb: what everything may take together.
        prefill_scratch_gb: the arena of long prompts; None holds 16 experts.
        kv_cache_gb: keys and values of a prompt and its answer. Whoever makes caches with what is returned
            here keeps to it by himself; an engine refuses requests beyond it.
        wired_gb: Metal's wired limit; an error elsewhere.

    Raises:
        MachError: every way in which a checkpoint, a budget or the machine can refuse.
    """
    flags = MemoryFlags(
        expert_cache_gb=expert_cache_gb,
        memory_gb=memory_gb,
        prefill_scratch_gb=prefill_scratch_gb,
        kv_cache_gb=kv_cache_gb,
        wired_gb=wired_gb,
    )
    loaded = load_swapped(checkpoint, arch, expert_residency=expert_residency, memory=flags)
    return loaded.model, loaded.tokenizer, loaded.store, loaded.cache


def load_swapped(
    checkpoint: str,
    arch: str | None = None,
    *,
    expert_residency: str | None,
    memory: MemoryFlags = NO_BUDGETS,
    listener: LoadListener = unheard,
) -> LoadedModel:
    """As `load_moe`, with the facts of the load; without a residency mode, `choose_residency` chooses.

    The `listener` is told how far the reading of experts and of other weights is.
    """
    directory = obtain_checkpoint(checkpoint)
    inspection = inspect_checkpoint(directory)
    adapter = inspection.adapter
    if arch is not None and arch != adapter.model_type:
        raise DecodeError(f"{directory}: is {adapter.model_type}, not {arch}")
    if adapter.model_type == "deepseek_v4":
        refuse_draft_settings()
    settings = StoreSettings.from_environment()
    gather = settings.use_gather_dispatch
    kernels = open_kernels(settings)
    # The reference dispatch computes its experts with stock operations, whatever computes the rest.
    for_experts = kernels if gather else stock_kernels("the reference dispatch")
    residency = choose_residency(expert_residency, inspection, settings, memory, for_experts)
    text = inspection.text_config
    context_length = context_limit(inspection)
    kv_bytes = kv_of(adapter, inspection.config, text, floats_as())
    anywhere = text if text.find("vocab_size")[1] is not None else inspection.config
    vocabulary_size = anywhere.integer("vocab_size", low=1, high=1 << 24)
    tokenizer = load_checkpoint_tokenizer(directory)
    wired = wire(memory.wired_gb)
    store, reader, plan, direct = open_store(inspection, settings, residency, memory, for_experts, listener)

    swapped: list[GatherSwitchGLU] = []

    def swap(layer: int, original: nn.Module) -> nn.Module:
        if gather:
            dispatch = GatherSwitchGLU(
                store,
                layer,
                original.activation,
                transient_min_tokens=settings.transient_min_tokens,
                kernels=kernels,
                in_graph=settings.in_graph_dispatch,
            )
            swapped.append(dispatch)
            return dispatch
        assert isinstance(store, BankCache)
        return DiskSwitchGLU(store, layer, original.activation)

    try:
        model, _ = build_model(directory, adapter, inspection.shape.moe_layers, swap, listener)
        kernel_report = use_kernels(model, kernels)
        if isinstance(store, BankCache) and gather:
            foretell_routes(model, adapter, inspection.shape.moe_layers)
            store.prewarm(listener)
    except BaseException:
        store.close()
        raise
    return LoadedModel(
        directory=directory,
        name=display_name(checkpoint, directory),
        adapter=adapter,
        sidecar_directory=inspection.sidecar_directory,
        model=model,
        tokenizer=tokenizer,
        store=store,
        cache=KVCacheFactory(model),
        reader=reader,
        settings=settings,
        dispatch=_dispatch_name(swapped) if gather else "disk",
        kernels=kernel_report,
        context_length=context_length,
        plan=plan,
        kv_bytes=kv_bytes,
        wired_bytes=wired,
        direct=direct,
        vocabulary_size=vocabulary_size,
        prefill_chunk=_prefill_chunk(inspection, kernel_report, store),
    )


def _prefill_chunk(
    inspection: CheckpointInspection, kernel_report: dict[str, Any], store: SwappedStore
) -> int:
    """Prompt tokens per forward pass."""
    if floats_as() != "cpu":
        return PREFILL_CHUNK
    if "reason" not in kernel_report and not kernel_report["stock"]:
        return prefill_chunk(inspection, "cpu")
    return SLOW_CHUNK if store.host_free else PREFILL_CHUNK


def _dispatch_name(layers: list[GatherSwitchGLU]) -> str:
    """What dispatches the experts: `in-graph` only where it does in every layer."""
    return "in-graph" if all(layer.in_graph for layer in layers) else "gather"
