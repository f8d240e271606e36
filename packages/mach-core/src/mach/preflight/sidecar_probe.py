"""Owns the verdict on an expert sidecar before loading: there, well-formed, complete, and the right one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mach.errors import CheckpointError
from mach.io.inspection import CheckpointInspection
from mach.io.quantization import QuantScheme, RoutedQuantization, unquantized

if TYPE_CHECKING:
    from mach.io.sidecar_layout import SidecarLayout


class SidecarProbe(NamedTuple):
    """What was found of a sidecar.

    Attributes:
        present: there is an expert_sidecar/layout.json.
        valid: it is well-formed, fits config.json and its files have the right sizes; None if absent.
        reason: one line.
        layout: the parsed layout if it is valid, else None.
    """

    present: bool
    valid: bool | None
    reason: str
    layout: SidecarLayout | None


ABSENT = SidecarProbe(False, None, "no expert_sidecar/layout.json", None)


def probe_sidecar(inspection: CheckpointInspection) -> SidecarProbe:
    """Look at the sidecar of a local checkpoint: layout.json and file sizes, not the records."""
    directory = inspection.sidecar_directory
    if directory is None:
        return ABSENT
    # Most checkpoints have no sidecar, and this module's import is a quarter of what checking them takes.
    from mach.io.sidecar_layout import check_files, read_layout  # noqa: PLC0415

    try:
        layout = read_layout(directory)
        check_files(layout, directory)
        match_config(layout, inspection, directory)
    except CheckpointError as error:
        return SidecarProbe(True, False, str(error), None)
    return SidecarProbe(True, True, f"{len(layout.layers)} layers, sizes as declared", layout)


def sidecar_quantization(layout: SidecarLayout) -> RoutedQuantization:
    """How a sidecar's records are packed; what it says counts more than config.json."""
    found: set[QuantScheme | None] = set()
    for layer in layout.layers:
        for q in layer.schema.quantization:
            found.add(None if q is None else QuantScheme(q.mode, q.bits, q.group_size))
    if found == {None}:
        weights = {
            s.dtype for layer in layout.layers for s in layer.schema.segments if s.component == "weight"
        }
        return unquantized(weights.pop() if len(weights) == 1 else "mixed")
    schemes = sorted(scheme for scheme in found if scheme is not None)
    # Which module has which is the loader's business: here the label and the main scheme count.
    overrides: dict[str, QuantScheme | None] = {str(i): scheme for i, scheme in enumerate(schemes[1:])}
    return RoutedQuantization(schemes[0], overrides, None, len(found) == 1)


def match_config(layout: SidecarLayout, inspection: CheckpointInspection, path: str) -> None:
    """Compare a sidecar with the config.json beside it.

    Raises:
        SidecarLayoutError: it is of another architecture, or has other layers, experts or widths.
    """
    from mach.io.sidecar_layout import SidecarLayoutError  # noqa: PLC0415 - as above
    from mach.preflight.sidecar_widths import require_widths  # noqa: PLC0415 - as above

    shape = inspection.shape
    if layout.model_type != inspection.adapter.model_type:
        raise SidecarLayoutError(
            f"{path}: model_type {layout.model_type[:100]!r} differs from config.json's "
            f"{inspection.adapter.model_type!r}: export the sidecar again",
            path=path,
            field="model_type",
        )
    declared = tuple(layer.index for layer in layout.layers)
    if declared != shape.moe_layers:
        odd = sorted(set(declared).symmetric_difference(shape.moe_layers))
        raise SidecarLayoutError(
            f"{path}: declares other layers than config.json, first layer {odd[0]}: export the sidecar again",
            path=path,
            field="layers",
        )
    for layer in layout.layers:
        if layer.num_experts != shape.num_experts:
            raise SidecarLayoutError(
                f"{path}: layer {layer.index} has {layer.num_experts} experts, not "
                f"config.json's {shape.num_experts}",
                path=path,
                field=f"layers[{layer.index}].num_experts",
            )
    require_widths(layout, shape, path, biased=inspection.adapter.has_expert_bias)
