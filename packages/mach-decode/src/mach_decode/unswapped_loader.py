"""Owns the generic path: a checkpoint with mlx-lm's own model, as mlx-lm loads it, nothing swapped.

Any model that mlx-lm has will do, dense or not, registered or not. All its weights stay in memory, and what
mlx-lm does wrong is done wrong here too: this path is for comparing with it.

On the CPU floats are widened to float32, as everywhere in mach: MLX's products of experts know no other dtype
there, and bfloat16 ones are several times slower. Elsewhere weights keep the dtypes they are stored in. An
embedding packed as mxfp4, mxfp8 or nvfp4 has no float to widen and gives bfloat16 here, float32 in the other
modes, so tokens may differ where two are nearly alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import load_model

from mach.errors import ConfigError
from mach.io.arch_adapter import MoeArchAdapter
from mach.io.arch_registry import REGISTRY
from mach.io.config_file import ConfigFields, read_config
from mach.io.inspection import ExpertTensorNames, find_sidecar
from mach.io.safetensors_header import TensorEntry, read_headers
from mach.preflight.memory_needs import (
    LOADED_CONTEXT,
    LOADER_RESERVE_BYTES,
    PREFILL_CHUNK,
    RUNTIME_BYTES,
    kv_of,
)
from mach.preflight.memory_plan import MemoryNeeds
from mach_decode.checkpoint_download import obtain_checkpoint
from mach_decode.errors import DecodeError, ResidencyError
from mach_decode.kv_cache import KVCacheFactory
from mach_decode.loaded_model import SLOW_CHUNK, LoadedModel, display_name
from mach_decode.memory_flags import NO_BUDGETS, MemoryFlags
from mach_decode.memory_refusal import admitted_plan
from mach_decode.tokenizer_loading import load_checkpoint_tokenizer
from mach_decode.wired_memory import wire
from mach_store.cpu_kernels import stock_kernels
from mach_store.direct_choice import NOTHING_STREAMED
from mach_store.load_progress import LoadListener, evaluate_weights, unheard
from mach_store.model_builder import compute_dtype
from mach_store.settings import StoreSettings
from mach_store.unswapped_experts import UnswappedExperts

_TEXT_OBJECTS = ("text_config", "llm_config", "language_config")
_CONTEXT_FIELDS = (
    "max_position_embeddings", "max_sequence_length", "max_seq_len", "seq_length", "n_positions", "n_ctx",
)  # fmt: skip
_VOCABULARY_FIELDS = ("vocab_size", "padded_vocab_size", "n_vocab")


def load_unswapped(
    checkpoint: str,
    *,
    widen: bool = True,
    memory: MemoryFlags = NO_BUDGETS,
    listener: LoadListener = unheard,
) -> LoadedModel:
    """`checkpoint` through mlx-lm alone.

    Args:
        checkpoint: a directory, the name of an installed checkpoint, or a Hugging Face repo id.
        widen: make floats float32 where this machine computes in it; False keeps the dtypes as stored.
        memory: budgets; one of the keys and values needs an architecture that the registry knows.
        listener: is told how far the reading of weights is.

    Raises:
        ResidencyError: its experts are in a sidecar, which mlx-lm does not read; a budget cannot be kept.
        MemoryBudgetError: its weights do not fit into the free memory.
        DecodeError: mlx-lm has no such model, or refuses the weights.
        MachError: the checkpoint is malformed or has no tokenizer.
    """
    settings = StoreSettings.from_environment()
    if settings.bf16_stacked_streaming:
        raise ResidencyError("LME_BF16_STACKED_STREAMING=1 goes with --streaming, not with --backend openai")
    if not settings.use_gather_dispatch:
        raise ResidencyError("LME_USE_GATHER_DISPATCH=0 goes with --streaming, not with --backend openai")
    if settings.direct_io:
        raise ResidencyError("LME_DIRECT_IO=1 goes with --streaming, not with --backend openai")
    if settings.decode_residency:
        raise ResidencyError("LME_DECODE_RESIDENCY goes with --streaming, not with --backend openai")
    directory = obtain_checkpoint(checkpoint)
    config = read_config(directory)
    adapter = REGISTRY.get(config.text("model_type"))
    headers = read_headers(directory)
    sidecar = find_sidecar(str(directory))
    if adapter is not None and sidecar is not None:
        names = ExpertTensorNames(adapter)
        if not any(names.place(name) for name in headers):
            raise ResidencyError(
                f"{directory}: --backend openai: its experts are in a sidecar, which mlx-lm does not read: "
                "use --streaming (in the library: load_moe)"
            )
    wide = widen and compute_dtype() == mx.float32
    weights = sum(
        entry.nbytes * (2 if wide and entry.dtype in ("BF16", "F16") else 1) for entry in headers.values()
    )
    budgets = memory.budgets("unswapped", settings)
    parts = _parts(config)
    context = _count(parts, _CONTEXT_FIELDS, 1 << 31) or LOADED_CONTEXT
    kv_bytes = _kv_bytes(adapter, config, wide, wanted=budgets.kv_cache is not None)
    wired = wire(memory.wired_gb)
    plan = admitted_plan(str(directory), _needs(headers, weights, wide, kv_bytes, context), budgets)
    tokenizer = load_checkpoint_tokenizer(directory)
    vocabulary = _count(parts, _VOCABULARY_FIELDS, 1 << 24) or len(tokenizer.get_vocab())
    model = _model(directory, wide, listener)
    # A model may take its size from elsewhere than config.json's nearest field; MLX reads past a table's end.
    rows = _embedding_rows(model)
    return LoadedModel(
        directory=directory,
        name=display_name(checkpoint, directory),
        adapter=adapter,
        sidecar_directory=sidecar,
        model=model,
        tokenizer=tokenizer,
        store=UnswappedExperts(),
        cache=KVCacheFactory(model),
        reader=None,
        settings=settings,
        dispatch="mlx-lm",
        kernels=stock_kernels("mlx-lm's own model, as it is").as_dict() | {"stock": {}},
        context_length=context,
        vocabulary_size=min(vocabulary, rows or vocabulary),
        prefill_chunk=SLOW_CHUNK if compute_dtype() == mx.float32 else PREFILL_CHUNK,
        plan=plan,
        kv_bytes=kv_bytes,
        wired_bytes=wired,
        direct=NOTHING_STREAMED,
    )


def _kv_bytes(
    adapter: MoeArchAdapter | None, config: ConfigFields, wide: bool, *, wanted: bool
) -> Callable[[int], int] | None:
    """Tokens → bytes of keys and values, None where that is not known; if it is `wanted`, an error then."""
    try:
        if adapter is not None:
            return kv_of(adapter, config, adapter.text_config(config), "cpu" if wide else "metal")
        why = f"{config.text('model_type')} is not registered"
    except ConfigError as error:  # mlx-lm may have a model for what our own families do not take
        why = str(error)
    if wanted:
        raise ResidencyError(f"--kv-cache-gb: the size of this model's keys and values is not known: {why}")
    return None


def _needs(
    headers: dict[str, TensorEntry],
    weights: int,
    wide: bool,
    kv_bytes: Callable[[int], int] | None,
    context: int,
) -> MemoryNeeds:
    floats = (entry.nbytes for entry in headers.values() if wide and entry.dtype in ("BF16", "F16"))
    # While a float tensor is widened, the original is there as well.
    reserve = max(LOADER_RESERVE_BYTES, RUNTIME_BYTES + max(floats, default=0))
    return MemoryNeeds(
        experts=0,
        least_bank=0,
        streaming=False,
        scratch=None,
        least_scratch=0,
        most_scratch=0,
        always_scratch=False,
        other_weights=weights,
        reserve=reserve,
        kv=kv_bytes,
        context=context,
    )


def _model(directory: Path, wide: bool, listener: LoadListener) -> nn.Module:
    try:
        model, _ = load_model(directory, lazy=True)
        if wide:
            model.set_dtype(mx.float32)
        # Evaluated here and not by mlx-lm, so that a damaged weight is this function's failure.
        evaluate_weights(model, listener)
    except Exception as error:  # mlx-lm's models raise whatever a strange config makes them stumble over
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise DecodeError(f"{os.fspath(directory)}: mlx-lm cannot load it: {reason}") from error
    return model


def _embedding_rows(model: nn.Module) -> int:
    """Rows of the model's largest embedding, which is that of its tokens; 0 if it has none of MLX's kind."""
    tables = (m for _, m in model.named_modules() if isinstance(m, (nn.Embedding, nn.QuantizedEmbedding)))
    return max((table.weight.shape[0] for table in tables), default=0)


def _parts(config: ConfigFields) -> list[ConfigFields]:
    """The objects of a config.json in which a language model's fields may stand, the nearest first."""
    nested = [config.object(name) for name in _TEXT_OBJECTS if isinstance(config.values.get(name), dict)]
    return [*(part for part in nested if part is not None), config]


def _count(parts: list[ConfigFields], names: tuple[str, ...], high: int) -> int:
    """The first of the fields that is a count; 0 if none is. Families spell and place it differently."""
    for part in parts:
        for name in names:
            value: Any = part.values.get(name)
            if type(value) is int and 0 < value <= high:
                return value
    return 0
