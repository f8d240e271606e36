"""Owns the question whether each expert of a raw checkpoint is a slice of plain floats, usable as it is."""

from __future__ import annotations

from mach.errors import UnsupportedLayoutError
from mach.io.inspection import CheckpointInspection
from mach.io.raw_experts import raw_experts


def slices_problem(inspection: CheckpointInspection) -> str | None:
    """Why the raw experts are no plain slices of floats, rows of outputs in MLX's order; None if they are.

    Headers and config.json alone.

    Raises:
        ConfigError: `quantization_config` is malformed.
    """
    try:
        found = raw_experts(inspection)
    except UnsupportedLayoutError as error:
        return str(error)
    form = found.form
    if form.axes != "out_in":
        return "its expert tensors are transposed, inputs before outputs"
    if form.interleaving != "halves" and any(len(projection.holds) > 1 for projection in form.projections):
        return "rows of its gate and up projections alternate in one tensor"
    for layer, weights in found.layers.items():
        for weight in weights:
            if weight.encoding != "plain":
                return f"layer {layer}: its experts are {weight.encoding}, not plain floats"
    return None
