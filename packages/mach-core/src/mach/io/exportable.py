"""Owns the question whether a sidecar can be exported from a checkpoint, for preflight and exporter alike.

Headers and config.json alone; how to pack is the exporter's own question.
"""

from __future__ import annotations

from mach.errors import UnsupportedLayoutError
from mach.io.inspection import CheckpointInspection
from mach.io.quantization import MLX_MODES
from mach.io.raw_experts import RAW_LAYOUTS, raw_experts
from mach.io.raw_form import FLOAT_DTYPES


def export_problem(inspection: CheckpointInspection) -> str | None:
    """Why no sidecar can be exported from this checkpoint's experts, or None if one can.

    Raises:
        ConfigError: `quantization_config` is malformed.
    """
    where = inspection.directory
    if inspection.layout == "dense":
        return f"{where}: no experts to export: {inspection.layout_reason}"
    if not inspection.headers_read:
        return f"{where}: the weights' headers could not be read"
    if inspection.layout == "stacked":
        return stacked_problem(inspection)
    if inspection.layout not in RAW_LAYOUTS:
        return (
            f"{where}: experts cannot be exported from the {inspection.layout} layout "
            f"({inspection.layout_reason}); a checkpoint with all its experts' tensors is needed"
        )
    try:
        raw_experts(inspection)
    except UnsupportedLayoutError as error:
        return str(error)
    return None


def stacked_problem(inspection: CheckpointInspection) -> str | None:
    """Why the experts of a stacked checkpoint cannot be read, or None; their shapes were checked before."""
    quantization = inspection.quantization
    for layer, projections in inspection.stacked.items():
        for projection, parts in projections.items():
            path = inspection.expert_module(layer, projection)
            scheme = quantization.scheme_for(path)
            if scheme is not None and scheme.mode not in MLX_MODES:
                return (
                    f"{parts['weight'].file}: {path}: {scheme.mode} experts are not read: convert to one of "
                    f"{', '.join(MLX_MODES)}"
                )
            for component, entry in parts.items():
                if component == "weight" and scheme is not None:
                    allowed: tuple[str, ...] = ("U32",)
                elif component == "scales" and scheme is not None and scheme.mode != "affine":
                    allowed = ("U8",)
                else:
                    allowed = FLOAT_DTYPES
                if entry.dtype not in allowed:
                    return (
                        f"{entry.file}: layer {layer}: {path}.{component} is {entry.dtype}, not "
                        f"{' or '.join(allowed)}: convert the original checkpoint again"
                    )
    return None
