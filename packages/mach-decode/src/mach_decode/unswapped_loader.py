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
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import load_model

from mach.io.arch_registry import REGISTRY
from mach.io.config_file import ConfigFields, read_config
from mach.io.inspection import ExpertTensorNames, find_sidecar
from mach.io.safetensors_header import read_headers
from mach_decode.checkpoint_download import obtain_checkpoint
from mach_decode.errors import DecodeError, ResidencyError
from mach_decode.kv_cache import KVCacheFactory
from mach_decode.loaded_model import LoadedModel, display_name
from mach_decode.memory_refusal import refuse_if_too_big
from mach_decode.tokenizer_loading import load_checkpoint_tokenizer
from mach_store.cpu_kernels import stock_kernels
from mach_store.model_builder import compute_dtype
from mach_store.settings import StoreSettings
from mach_store.unswapped_experts import UnswappedExperts

_TEXT_OBJECTS = ("text_config", "llm_config", "language_config")
_CONTEXT_FIELDS = (
    "max_position_embeddings", "max_sequence_length", "max_seq_len", "seq_length", "n_positions", "n_ctx",
)  # fmt: skip
_VOCABULARY_FIELDS = ("vocab_size", "padded_vocab_size", "n_vocab")
DEFAULT_CONTEXT = 4096
"""Tokens that prompt and answer may have together where config.json does not say."""


def load_unswapped(checkpoint: str, *, widen: bool = True) -> LoadedModel:
    """`checkpoint` through mlx-lm alone.

    Args:
        checkpoint: a directory, the name of an installed checkpoint, or a Hugging Face repo id.
        widen: make floats float32 where this machine computes in it; False keeps the dtypes as stored.

    Raises:
        ResidencyError: its experts are in a sidecar, which mlx-lm does not read.
        MemoryBudgetError: its weights do not fit into the free memory.
        DecodeError: mlx-lm has no such model, or refuses the weights.
        MachError: the checkpoint is malformed or has no tokenizer.
    """
    settings = StoreSettings.from_environment()
    if settings.bf16_stacked_streaming:
        raise ResidencyError("LME_BF16_STACKED_STREAMING=1 goes with --streaming, not with --backend openai")
    if not settings.use_gather_dispatch:
        raise ResidencyError("LME_USE_GATHER_DISPATCH=0 goes with --streaming, not with --backend openai")
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
    refuse_if_too_big(str(directory), {"the weights": weights}, "use a smaller or more quantised checkpoint")
    tokenizer = load_checkpoint_tokenizer(directory)
    parts = _parts(config)
    context = _count(parts, _CONTEXT_FIELDS, 1 << 31) or DEFAULT_CONTEXT
    vocabulary = _count(parts, _VOCABULARY_FIELDS, 1 << 24) or len(tokenizer.get_vocab())
    model = _model(directory, wide)
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
    )


def _model(directory: Path, wide: bool) -> nn.Module:
    try:
        model, _ = load_model(directory, lazy=True)
        if wide:
            model.set_dtype(mx.float32)
        # Evaluated here and not by mlx-lm, so that a damaged weight is this function's failure.
        mx.eval(model.parameters())
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
