"""Owns `load_v4_flash`: DeepSeek-V4 and nothing else, from the engine layout alone.

What it loads goes through `load_moe`'s pipeline; here stands only what is refused before.
"""

from __future__ import annotations

import sys
from typing import Any

import mlx.nn as nn

from mach.io.inspection import CheckpointInspection, inspect_checkpoint
from mach_decode.checkpoint_download import obtain_checkpoint
from mach_decode.draft_settings import refuse_draft_settings
from mach_decode.errors import DecodeError, ResidencyError
from mach_decode.kv_cache import KVCacheFactory
from mach_decode.loaded_model import ExpertStore
from mach_decode.loader import load_moe

ARCHITECTURE = "deepseek_v4"


def load_v4_flash(
    checkpoint: str,
    *,
    expert_cache_gb: float | None = None,
    memory_gb: float | None = None,
    prefill_scratch_gb: float | None = None,
    kv_cache_gb: float | None = None,
    wired_gb: float | None = None,
) -> tuple[nn.Module, Any, ExpertStore, KVCacheFactory]:
    """A DeepSeek-V4 checkpoint in the engine layout: `(model, tokenizer, store, cache)`.

    It decodes target-only. Weights of multi-token prediction stay in the checkpoint, and a line on stderr
    says how many bytes of them are not used.

    Args:
        checkpoint: a directory, or the name of an installed checkpoint.
        expert_cache_gb: as for `load_moe`, like the other budgets.
        memory_gb: see there.
        prefill_scratch_gb: see there.
        kv_cache_gb: see there.
        wired_gb: see there.

    Raises:
        ResidencyError: the experts are in no sidecar.
        DecodeError: it is another architecture.
        SettingError: the environment asks for drafts (`LME_V4_DRAFT`, `LME_RHO_GATE…`).
        MachError: as `load_moe`.
    """
    refuse_draft_settings()
    directory = obtain_checkpoint(checkpoint)
    inspection = inspect_checkpoint(directory)
    _require_engine_layout(inspection)
    if inspection.unused_bytes:
        print(
            f"mach: {directory}: {inspection.unused_bytes / 1e9:.2f} GB of weights for multi-token "
            "prediction are kept in the checkpoint and not used: this version decodes target-only",
            file=sys.stderr,
        )
    return load_moe(
        str(directory),
        ARCHITECTURE,
        expert_residency="streaming",
        expert_cache_gb=expert_cache_gb,
        memory_gb=memory_gb,
        prefill_scratch_gb=prefill_scratch_gb,
        kv_cache_gb=kv_cache_gb,
        wired_gb=wired_gb,
    )


def _require_engine_layout(inspection: CheckpointInspection) -> None:
    where, found = inspection.directory, inspection.adapter.model_type
    if found != ARCHITECTURE:
        raise DecodeError(f"{where}: is {found}, not {ARCHITECTURE}: use load_moe")
    if inspection.sidecar_directory is None:
        raise ResidencyError(
            f"{where}: {ARCHITECTURE} needs the sliced engine layout, and this checkpoint is "
            f"{inspection.layout} ({inspection.layout_reason}): make one with mach-prune"
        )
