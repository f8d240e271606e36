"""Owns the guess which experts the next layer will choose: its router, on this layer's input.

The residual stream changes little from one layer to the next, so the router of the next one, a layer early,
ranks most of what it will choose first. A guess changes no result: it says what may be read early.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mach.io.arch_adapter import MoeArchAdapter
from mach_store.gather_switch_glu import GatherSwitchGLU

Scores = Callable[[mx.array], mx.array]
"""x [..., hidden], as a layer's experts get it → [..., experts] float32, highest for the likeliest choice."""


def foretell_routes(model: nn.Module, adapter: MoeArchAdapter, moe_layers: Sequence[int]) -> None:
    """Give every swapped layer but the last the router of the one after it, where that one looks at x alone.

    Args:
        model: its layers are in place; their routers are looked up when they are used.
        adapter: its family.
        moe_layers: model indices of the layers with routed experts, ascending.
    """
    owners = [_owners(model, adapter.switch_block(layer)) for layer in moe_layers]
    for here, after in zip(owners, owners[1:], strict=False):
        dispatch = here[-1]
        scores_of = _router_of(adapter.model_type, here, after)
        if isinstance(dispatch, GatherSwitchGLU) and scores_of is not None:
            dispatch.foretell(scores_of)


def _owners(model: Any, path: str) -> list[Any]:
    """The modules along `path`, from the model to the module itself."""
    owners = [model]
    for part in path.split("."):
        owners.append(owners[-1][int(part)] if part.isdigit() else getattr(owners[-1], part))
    return owners


def _router_of(model_type: str, here: list[Any], after: list[Any]) -> Scores | None:
    block = after[-2]
    if model_type in ("qwen3_moe", "qwen3_5_moe"):
        return lambda x: block.gate(x).astype(mx.float32)
    if model_type == "gpt_oss":
        return lambda x: block.router(x).astype(mx.float32)
    if model_type == "gemma4":
        norm, router = here[-3].pre_feedforward_layernorm_2, after[-3].router

        def scores(x: mx.array) -> mx.array:
            # The router has a norm of its own, and sees no other layer's scale.
            scale = router.scale * router._root_size
            ranked: mx.array = router.proj(mx.fast.rms_norm(x / norm.weight, scale, router.eps))
            return ranked.astype(mx.float32)

        return scores
    if model_type == "deepseek_v4" and "tid2eid" not in block.gate:
        return lambda x: block.gate.ranking(x)
    return None  # routes of a hashed layer come from the tokens
