"""Owns what one load brings: the model, its parts, and the facts that start-up lines and reports name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn

from mach.io.arch_adapter import MoeArchAdapter
from mach.preflight.memory_plan import MemoryPlan
from mach_decode.kv_cache import KVCacheFactory
from mach_store.bank_cache import BankCache
from mach_store.direct_choice import DirectChoice
from mach_store.resident_cache import ResidentStackedExpertCache
from mach_store.scatter_reader import ScatterReader
from mach_store.settings import StoreSettings
from mach_store.unswapped_experts import UnswappedExperts

SwappedStore = BankCache | ResidentStackedExpertCache
ExpertStore = SwappedStore | UnswappedExperts
SLOW_CHUNK = 64
"""Prompt tokens per forward pass on a CPU where nothing can be cancelled within it: one that takes long, and
gains nothing from being long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """Everything one load brought.

    Attributes:
        directory: the checkpoint.
        name: what to call it: its directory's name.
        adapter: its architecture; None for one that only mlx-lm knows.
        sidecar_directory: its expert sidecar, or None.
        reader: how experts are read; None when nothing is streamed.
        dispatch: `in-graph`, `gather` or `disk`; `mlx-lm` where nothing was swapped.
        kernels: what computes the products, see `mach_store.model_kernels`.
        context_length: tokens that prompt and answer may have together.
        vocabulary_size: rows of the embedding.
        prefill_chunk: prompt tokens per forward pass.
        plan: how the memory is divided, which says what prompt and answer may hold.
        kv_bytes: tokens → keys and values of a context of so many, at most; None where that is not known.
        wired_bytes: Metal's wired limit; None where there is no Metal.
        direct: whether experts are read past the page cache, and why.
    """

    directory: Path
    name: str
    adapter: MoeArchAdapter | None
    sidecar_directory: str | None
    model: nn.Module
    tokenizer: Any
    store: ExpertStore
    cache: KVCacheFactory
    reader: ScatterReader | None
    settings: StoreSettings
    dispatch: str
    kernels: dict[str, Any]
    context_length: int
    vocabulary_size: int
    prefill_chunk: int
    plan: MemoryPlan
    kv_bytes: Callable[[int], int] | None
    wired_bytes: int | None
    direct: DirectChoice


def display_name(checkpoint: str, directory: Path) -> str:
    """What a loaded checkpoint is called: its directory's name, or the name that the user gave."""
    return directory.name if Path(checkpoint).is_dir() else checkpoint
