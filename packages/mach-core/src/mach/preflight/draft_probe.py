"""Owns the question whether a directory holds a speculative-decoding draft that fits a target."""

from __future__ import annotations

import os
from typing import NamedTuple

from mach.errors import CheckpointError
from mach.io.arch_adapter import MAX_LAYERS, MAX_WIDTH, MoeArchAdapter, MoeShape
from mach.io.config_file import read_config
from mach.io.safetensors_header import read_headers


class DraftProbe(NamedTuple):
    """What was found in a draft directory: whether it can be used, why (not), and its weights' bytes."""

    path: str
    usable: bool
    reason: str
    nbytes: int


def probe_draft(directory: str, adapter: MoeArchAdapter, shape: MoeShape) -> DraftProbe:
    """Judge `directory` as a draft for a target of `adapter`'s architecture.

    A DFlash draft's config.json has `block_size`, `num_target_layers` and `dflash_config` with
    `mask_token_id` and `target_layer_ids`, and shares the target's width.
    """
    if adapter.specdec_kind != "specdec_v7":
        kind = adapter.specdec_kind or "none"
        return DraftProbe(directory, False, f"{adapter.model_type} takes no DFlash draft (kind: {kind})", 0)
    try:
        if not os.path.isdir(directory):
            return DraftProbe(directory, False, f"{directory}: no such directory", 0)
        config = read_config(directory)
        config.integer("block_size", low=2, high=1024)
        hidden = config.integer("hidden_size", low=1, high=MAX_WIDTH)
        layers = config.integer("num_target_layers", low=1, high=MAX_LAYERS)
        dflash = config.object("dflash_config")
        if dflash is None:
            raise config.error("dflash_config", "is missing: this is not a DFlash draft")
        dflash.integer("mask_token_id", low=0, high=1 << 31)
        dflash.integers("target_layer_ids", 0, shape.num_layers - 1, MAX_LAYERS)
        if hidden != shape.hidden_size:
            raise config.error("hidden_size", f"is {hidden}, but the target's is {shape.hidden_size}")
        if layers != shape.num_layers:
            raise config.error("num_target_layers", f"is {layers}, but the target has {shape.num_layers}")
        tensors = read_headers(directory)
    except CheckpointError as error:
        return DraftProbe(directory, False, str(error), 0)
    if not tensors:
        return DraftProbe(directory, False, f"{directory}: no safetensors files", 0)
    nbytes = sum(entry.nbytes for entry in tensors.values())
    return DraftProbe(directory, True, "DFlash draft that fits the target", nbytes)
