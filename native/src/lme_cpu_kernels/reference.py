"""The twins of the kernels in stock MLX operations: the same results within rounding, on any device."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

Components = Mapping[str, mx.array]
Packing = tuple[str, int, int] | None


def dense_product(components: Components, packing: Packing, x: mx.array) -> mx.array:
    """As `DenseProduct(components, packing)(x)`."""
    slots = mx.zeros((*x.shape[:-1], 1), mx.uint32)
    return _project(components, packing, x[..., None, None, :], slots)[..., 0, 0, :]


def expert_product(
    gate: Components,
    up: Components,
    down: Components,
    packing: tuple[Packing, Packing, Packing],
    x: mx.array,
    slots: mx.array,
    scores: mx.array | None = None,
    *,
    activation: str,
    alpha: float | None = None,
    limit: float | None = None,
) -> mx.array:
    """As `ExpertProduct(gate, up, down, packing, …)(x, slots, scores)`; slots are not checked."""
    rows = x[..., None, None, :]
    hidden = _activate(
        _project(gate, packing[0], rows, slots),
        _project(up, packing[1], rows, slots),
        activation,
        alpha,
        limit,
    )
    y = _project(down, packing[2], hidden, slots).squeeze(-2)
    return y if scores is None else (y * scores[..., None]).sum(-2)


def _activate(
    gate: mx.array, up: mx.array, activation: str, alpha: float | None, limit: float | None
) -> mx.array:
    if limit is not None:
        gate, up = mx.minimum(gate, limit), mx.clip(up, -limit, limit)
    if activation == "swiglu":
        return gate * mx.sigmoid(gate) * up
    if activation == "swiglu_oai":
        return (up + 1) * gate * mx.sigmoid((1.702 if alpha is None else alpha) * gate)
    if activation == "geglu_tanh":
        inner = 0.7978845608028654 * (gate + 0.044715 * gate**3)
        return 0.5 * gate * (1 + mx.tanh(inner)) * up
    raise ValueError(f"no activation is named {activation}: there are swiglu, swiglu_oai and geglu_tanh")


def _project(components: Components, packing: Packing, x: mx.array, slots: mx.array) -> mx.array:
    if packing is None:
        weight = components["weight"].astype(x.dtype).swapaxes(-1, -2)
        y = mx.gather_mm(x, weight, rhs_indices=slots)
    else:
        mode, bits, group_size = packing
        y = mx.gather_qmm(
            x,
            components["weight"],
            components["scales"],
            components.get("biases"),
            rhs_indices=slots,
            transpose=True,
            group_size=group_size,
            bits=bits,
            mode=mode,
        )
    if "bias" in components:
        y = y + components["bias"][slots][..., None, :]
    return y
