"""Owns the arithmetic of routed experts on stock MLX operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mlx.core as mx

from mach.io.sidecar_layout import Quantization

Activation = Callable[[mx.array, mx.array], mx.array]
"""(up, gate) → hidden, as the family's own mlx-lm module defines it."""

Components = Mapping[str, Mapping[str, mx.array]]

Packing = Mapping[str, Quantization | None]
"""projection → how its weights are packed; None for plain floats."""

SORT_FROM_ROUTES = 64
"""From this many routes on, neighbouring rows use the same expert: GPU kernels then reuse its weights."""


def apply_experts(
    components: Components,
    packing: Packing,
    activation: Activation,
    x: mx.array,
    slots: mx.array,
) -> mx.array:
    """The routed experts' outputs, one row per route.

    Args:
        components: projection → component → array [slots, out, in…].
        packing: how each projection's weights are packed.
        activation: combines the up and gate products.
        x: [..., hidden] in the compute dtype.
        slots: [..., k] integers below the arrays' first extent. They are not checked: an id out of range
            reads other memory, so whoever makes them must.

    Returns:
        [..., k, hidden].
    """
    if slots.size < SORT_FROM_ROUTES:
        return _block(
            components, packing, activation, mx.expand_dims(x, (-2, -3)), slots, ordered=False
        ).squeeze(-2)
    k = slots.shape[-1]
    flat = slots.flatten()
    order = mx.argsort(flat)
    rows = mx.expand_dims(x.reshape(-1, x.shape[-1])[order // k], -2)
    y = _block(components, packing, activation, rows, flat[order], ordered=True)
    return mx.unflatten(y.squeeze(-2)[mx.argsort(order)], 0, slots.shape)


def apply_sorted(
    components: Components,
    packing: Packing,
    activation: Activation,
    rows: mx.array,
    slots: mx.array,
    pass_routes: int,
) -> mx.array:
    """As `apply_experts` for routes already in slot order: rows [r, hidden], slots [r] → [r, hidden].

    `pass_routes` counts the routes of the whole pass, of which these may be a part. It decides, as there,
    whether the order is made use of: on a GPU other kernels round otherwise, and a pass should round alike
    whether its experts came from the disk or not. (Under CUDA the number of rows still matters, see
    `docs/log.md`; on the CPU nothing does.)
    """
    ordered = pass_routes >= SORT_FROM_ROUTES
    y = _block(components, packing, activation, mx.expand_dims(rows, -2), slots, ordered=ordered)
    return y.squeeze(-2)


def _block(
    components: Components,
    packing: Packing,
    activation: Activation,
    x: mx.array,
    slots: mx.array,
    *,
    ordered: bool,
) -> mx.array:
    up = _project(components["up_proj"], packing["up_proj"], x, slots, ordered)
    gate = _project(components["gate_proj"], packing["gate_proj"], x, slots, ordered)
    return _project(components["down_proj"], packing["down_proj"], activation(up, gate), slots, ordered)


def _project(
    tensors: Mapping[str, mx.array],
    quantization: Quantization | None,
    x: mx.array,
    slots: mx.array,
    ordered: bool,
) -> mx.array:
    if quantization is None:
        y = mx.gather_mm(x, tensors["weight"].swapaxes(-1, -2), rhs_indices=slots, sorted_indices=ordered)
    else:
        y = mx.gather_qmm(
            x,
            tensors["weight"],
            tensors["scales"],
            tensors.get("biases"),
            rhs_indices=slots,
            transpose=True,
            group_size=quantization.group_size,
            bits=quantization.bits,
            mode=quantization.mode,
            sorted_indices=ordered,
        )
    if "bias" in tensors:
        y = y + mx.expand_dims(tensors["bias"][slots], -2)
    return y
