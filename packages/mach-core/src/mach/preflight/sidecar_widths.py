"""Owns the comparison of a sidecar's tensors with the widths that config.json gives the experts."""

from __future__ import annotations

from mach.io.arch_adapter import MoeShape
from mach.io.quantization import QuantScheme, component_shapes
from mach.io.sidecar_layout import PROJECTIONS, SidecarLayout, SidecarLayoutError


def require_widths(layout: SidecarLayout, shape: MoeShape, directory: str, *, biased: bool) -> None:
    """Check that every record holds the tensors that the model multiplies with.

    Args:
        layout: of the sidecar.
        shape: the widths that config.json states.
        directory: the sidecar, for messages.
        biased: whether the family's experts have biases.

    Raises:
        SidecarLayoutError: a tensor is missing, left over, or of another shape.
    """
    for layer in layout.layers:
        found = {segment.name: segment.shape for segment in layer.schema.segments}
        wanted: dict[str, tuple[int, ...]] = {}
        for projection, q in zip(PROJECTIONS, layer.schema.quantization, strict=True):
            rows, columns = shape.expert_width, shape.hidden_size
            if projection == "down_proj":
                rows, columns = columns, rows
            scheme = None if q is None else QuantScheme(q.mode, q.bits, q.group_size)
            for component, extents in component_shapes(scheme, rows, columns).items():
                wanted[f"{projection}.{component}"] = extents
            if biased:
                wanted[f"{projection}.bias"] = (rows,)
        if found != wanted:
            name = min(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
            raise SidecarLayoutError(
                f"{directory}: layer {layer.index}: {name} is {_show(found.get(name))}, but config.json "
                f"makes it {_show(wanted.get(name))}: export the sidecar again",
                path=directory,
                field=f"layers[{layer.index}].segments",
            )


def _show(extents: tuple[int, ...] | None) -> str:
    return "missing" if extents is None else str(list(extents))
