"""Owns the binding of a checkpoint's tensors to the model: names, and what may stand behind them."""

from __future__ import annotations

from typing import cast

import mlx.core as mx

from mach.io.deepseek_v4_config import DeepseekV4Config
from mach.io.deepseek_v4_tensors import own_name
from mach_store.errors import StoreError

_PRUNE = "make an engine checkpoint with mach-prune, which unpacks it"


def bind_names(
    weights: dict[str, mx.array], args: DeepseekV4Config
) -> tuple[dict[str, mx.array], tuple[int, int]]:
    """`weights` under the model's own names, and (tensors, bytes) of those that nothing binds.

    Raises:
        StoreError: see `Model.sanitize`.
    """
    bound: dict[str, mx.array] = {}
    unbound = [0, 0]
    for name, array in weights.items():
        own = own_name(name)
        if own is None:
            unbound[0] += 1
            unbound[1] += array.nbytes
            continue
        if own in bound:
            raise StoreError(f"tensor {name[:200]!r} is there twice, also spelled otherwise: drop one")
        _refuse_packed(name, own, array, weights)
        bound[own] = _checked_table(name, array, args) if own.endswith(".tid2eid") else array
    return bound, (unbound[0], unbound[1])


def _refuse_packed(name: str, own: str, array: mx.array, weights: dict[str, mx.array]) -> None:
    """Raise about float8 blocks, which loading would take for numbers."""
    block_scale = own.endswith((".scale", "_scale_inv", ".scale_inv")) and "_hc." not in own
    if block_scale:
        raise StoreError(f"tensor {name[:200]!r} scales float8 or float4 blocks: {_PRUNE}")
    plain = own.endswith(".weight") and f"{name.removesuffix('.weight')}.scales" not in weights
    if plain and not mx.issubdtype(array.dtype, mx.floating):
        raise StoreError(f"tensor {name[:200]!r} is {array.dtype} without scales: {_PRUNE}")


def _checked_table(name: str, table: mx.array, args: DeepseekV4Config) -> mx.array:
    """A hash-routed layer's table, which sends no token to an expert that is not there.

    MLX does not check indices, and such an expert would be other memory.
    """
    if not mx.issubdtype(table.dtype, mx.integer) or not table.size:
        raise StoreError(f"tensor {name[:200]!r} is {table.dtype} {list(table.shape)}, no table of experts")
    low, high = cast(int, table.min().item()), cast(int, table.max().item())
    if low < 0 or high >= args.experts:
        raise StoreError(
            f"tensor {name[:200]!r} routes tokens to expert {low if low < 0 else high}, but there are "
            f"{args.experts}: fetch or make the checkpoint again"
        )
    return table.astype(mx.int32)
