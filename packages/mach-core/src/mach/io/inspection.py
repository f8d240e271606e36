"""Owns the classification of a checkpoint: its expert layout, its quantisation, and what its bytes are.

Everything comes from config.json and safetensors headers; no weight is read, and nothing here depends on what
this machine can do. The sidecar's content is `sidecar_layout`'s business: here only its presence counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mach.errors import HeaderError, UnsupportedLayoutError
from mach.io.arch_adapter import MoeArchAdapter, MoeShape
from mach.io.arch_registry import adapter_for
from mach.io.config_file import ConfigFields, read_config
from mach.io.expert_names import GLOBAL_SCALE, ExpertPlace, ExpertTensorNames
from mach.io.quantization import (
    MLX_MODES,
    PROJECTIONS,
    RoutedQuantization,
    component_shapes,
    routed_quantization,
    unquantized,
)
from mach.io.safetensors_header import TensorEntry, read_headers

__all__ = [
    "LAYOUTS",
    "SIDECAR_DIRECTORY",
    "CheckpointInspection",
    "ExpertPlace",
    "ExpertTensorNames",
    "Layout",
    "StackedExperts",
    "classify",
    "find_sidecar",
    "inspect_checkpoint",
    "inspect_names",
    "inspect_tensors",
]

LAYOUTS = ("sliced", "stacked", "per_expert", "fused", "dense", "unknown")
SIDECAR_DIRECTORY = "expert_sidecar"
SIDECAR_LAYOUT = "layout.json"

StackedExperts = Mapping[int, Mapping[str, Mapping[str, TensorEntry]]]


class Layout(NamedTuple):
    """An expert layout and why it was found: `name` is one of LAYOUTS."""

    name: str
    reason: str


class CheckpointInspection(NamedTuple):
    """What is known of a checkpoint without loading it.

    Attributes:
        directory: where it lies.
        adapter: its architecture.
        config: the whole config.json.
        shape: its routed part.
        layout: `sliced` (experts in a sidecar alone), `stacked` (axis 0), `per_expert` (raw, a tensor per
            expert), `fused` (raw, gate and up in one tensor), `dense` (no routed experts) or `unknown`.
        layout_reason: one line that says what decided the layout.
        quantization: how the routed experts are packed.
        tensors: every tensor by name.
        expert_bytes: bytes of the routed experts' tensors; 0 for `sliced`, whose sidecar knows.
        other_bytes: bytes of the tensors that the engine loads besides.
        unused_bytes: bytes of tensors that it does not load (vision towers, multi-token prediction).
        sidecar_directory: the expert_sidecar directory if it has a layout.json, else None.
        stacked: layer → projection → component (weight, scales, biases, bias) → tensor, with experts on
            axis 0; empty unless the layout is `stacked`.
        expert_layer_bytes: layer → safetensors dtype → bytes of its routed experts' tensors.
        other_dtype_bytes: safetensors dtype → bytes; sums to `other_bytes`.
        others: the tensors that are no routed experts', by name.
        headers_read: False if the weights' headers were out of reach, so that sizes are not known.
    """

    directory: str
    adapter: MoeArchAdapter
    config: ConfigFields
    shape: MoeShape
    layout: str
    layout_reason: str
    quantization: RoutedQuantization
    tensors: Mapping[str, TensorEntry]
    expert_bytes: int
    other_bytes: int
    unused_bytes: int
    sidecar_directory: str | None
    stacked: StackedExperts
    expert_layer_bytes: Mapping[int, Mapping[str, int]]
    other_dtype_bytes: Mapping[str, int]
    others: Mapping[str, TensorEntry]
    headers_read: bool = True

    @property
    def text_config(self) -> ConfigFields:
        """The language model's fields of the config."""
        return self.adapter.text_config(self.config)

    def expert_module(self, layer: int, projection: str) -> str:
        """MLX module path of a layer's projection, the key of its quantisation scheme."""
        return f"{self.adapter.switch_block(layer)}.{projection}"


def inspect_checkpoint(directory: str | os.PathLike[str]) -> CheckpointInspection:
    """Inspect the checkpoint in `directory` from config.json and safetensors headers.

    Raises:
        CheckpointNotFoundError: there is no config.json.
        UnknownArchitectureError: its model_type is not in the registry.
        ConfigError: config.json, or a safetensors index, is malformed.
        HeaderError: a safetensors header is malformed, or a stacked tensor contradicts config.json.
    """
    directory = os.fspath(directory)
    config = read_config(directory)
    return inspect_tensors(directory, config, read_headers(directory), find_sidecar(directory))


def find_sidecar(directory: str) -> str | None:
    """The expert_sidecar directory of a checkpoint if it holds a layout.json."""
    sidecar = os.path.join(directory, SIDECAR_DIRECTORY)
    return sidecar if os.path.isfile(os.path.join(sidecar, SIDECAR_LAYOUT)) else None


def inspect_names(
    directory: str, config: ConfigFields, tensor_names: Iterable[str], sidecar: str | None
) -> CheckpointInspection:
    """`inspect_checkpoint` where only names are known, from an index file: a layout, but no sizes."""
    found = inspect_tensors(directory, config, {}, sidecar)
    names = ExpertTensorNames(found.adapter)
    places = [place for name in tensor_names if (place := names.place(name)) is not None]
    layout = classify(found.shape, places, sidecar is not None)
    return found._replace(layout=layout.name, layout_reason=layout.reason, headers_read=False)


def inspect_tensors(
    directory: str, config: ConfigFields, tensors: Mapping[str, TensorEntry], sidecar: str | None
) -> CheckpointInspection:
    """`inspect_checkpoint` on headers that the caller has read, from disk or over the network."""
    adapter = adapter_for(config)
    shape = adapter.moe_shape(config)
    names = ExpertTensorNames(adapter)
    experts = {name: place for name in tensors if (place := names.place(name)) is not None}
    layout = classify(shape, experts.values(), sidecar is not None)
    dtype = next((tensors[name].dtype for name in experts if tensors[name].dtype != "F8_E8M0"), None)
    quantization = routed_quantization(adapter, config, shape, dtype)
    stacked: StackedExperts = {}
    if layout.name == "stacked":
        stacked = _stacked_table(tensors, experts)
        if not any("scales" in parts for layer in stacked.values() for parts in layer.values()):
            quantization = unquantized(dtype or "")
        _check_stacked(adapter, shape, stacked, quantization)
    by_layer: dict[int, dict[str, int]] = {}
    others: dict[str, int] = {}
    unused_bytes = 0
    for name, entry in tensors.items():
        place = experts.get(name)
        if place is not None:
            sizes = by_layer.setdefault(place.layer, {})
        elif adapter.is_unused(name):
            unused_bytes += entry.nbytes
            continue
        else:
            sizes = others
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.nbytes
    return CheckpointInspection(
        directory=directory,
        adapter=adapter,
        config=config,
        shape=shape,
        layout=layout.name,
        layout_reason=layout.reason,
        quantization=quantization,
        tensors=tensors,
        expert_bytes=sum(sum(sizes.values()) for sizes in by_layer.values()),
        other_bytes=sum(others.values()),
        unused_bytes=unused_bytes,
        sidecar_directory=sidecar,
        stacked=stacked,
        expert_layer_bytes=by_layer,
        other_dtype_bytes=others,
        others={name: entry for name, entry in tensors.items() if name not in experts},
    )


def classify(shape: MoeShape, places: Iterable[ExpertPlace], has_sidecar: bool) -> Layout:
    """The layout of a checkpoint whose routed-expert tensors are `places`, complete or not."""
    if not shape.moe_layers:
        return Layout("dense", "config.json describes no routed experts")
    found: dict[str, set[tuple[int, int, str]]] = {}
    for place in places:
        # Of the components only the weight must be there: quantisation decides on the others.
        if place.is_weight:
            found.setdefault(place.kind, set()).add((place.layer, place.expert, place.projection))
    if not found:
        if has_sidecar:
            return Layout("sliced", "experts are in expert_sidecar/ alone")
        return Layout("unknown", "no routed-expert tensors, and no expert_sidecar/layout.json")
    if len(found) > 1:
        return Layout("unknown", f"expert tensors in several layouts at once: {', '.join(sorted(found))}")
    kind, have = next(iter(found.items()))
    projections = ("gate_up_proj", "down_proj") if kind == "fused" else PROJECTIONS
    experts = range(shape.num_experts) if kind == "per_expert" else (-1,)
    expected = len(shape.moe_layers) * len(experts) * len(projections)
    missing = next(
        (
            (layer, expert, projection)
            for layer in shape.moe_layers
            for expert in experts
            for projection in projections
            if (layer, expert, projection) not in have
        ),
        None,
    )
    if missing is not None:
        layer, expert, projection = missing
        which = f"layer {layer}" + (f", expert {expert}" if expert >= 0 else "")
        return Layout(
            "unknown",
            f"{kind} experts are incomplete: {which} has no {projection} ({len(have)} of {expected})",
        )
    if len(have) != expected:
        layer, expert, projection = min(have - _expected(shape, experts, projections))
        return Layout(
            "unknown", f"{kind} experts beyond config.json: layer {layer}, expert {expert}, {projection}"
        )
    return Layout(kind, _REASONS[kind])


_REASONS = {
    "stacked": "each layer's experts are stacked on axis 0",
    "per_expert": "raw checkpoint with one tensor per expert",
    "fused": "raw checkpoint with gate and up projections fused",
}


def _expected(
    shape: MoeShape, experts: Iterable[int], projections: Iterable[str]
) -> set[tuple[int, int, str]]:
    return {
        (layer, e, projection) for layer in shape.moe_layers for e in experts for projection in projections
    }


def _stacked_table(
    tensors: Mapping[str, TensorEntry], experts: Mapping[str, ExpertPlace]
) -> dict[int, dict[str, dict[str, TensorEntry]]]:
    table: dict[int, dict[str, dict[str, TensorEntry]]] = {}
    for name, place in experts.items():
        if place.component == GLOBAL_SCALE:
            raise UnsupportedLayoutError(
                f"{tensors[name].file}: {name}: nvfp4 with a global scale is not computed here: quantise the "
                "original checkpoint without one",
                path=tensors[name].file,
                layout="stacked",
                field=name,
            )
        parts = table.setdefault(place.layer, {}).setdefault(place.projection, {})
        if place.component in parts:
            raise HeaderError(
                f"{tensors[name].file}: tensor {name!r} is there twice under two spellings",
                path=tensors[name].file,
                field=name,
            )
        parts[place.component] = tensors[name]
    return table


def _check_stacked(
    adapter: MoeArchAdapter, shape: MoeShape, stacked: StackedExperts, quantization: RoutedQuantization
) -> None:
    """Compare shapes and dtypes with config.json, so that slices taken at offsets are the right ones."""
    for layer, projections in stacked.items():
        for projection, parts in projections.items():
            path = f"{adapter.switch_block(layer)}.{projection}"
            rows, columns = shape.expert_width, shape.hidden_size
            if projection == "down_proj":
                rows, columns = columns, rows
            scheme = quantization.scheme_for(path)
            if ("scales" in parts) != (scheme is not None):
                state = "are quantised" if "scales" in parts else "are not quantised"
                entry = parts["weight"]
                raise HeaderError(
                    f"{entry.file}: {path}: the tensors {state}, but config.json's quantization says "
                    f"otherwise",
                    path=entry.file,
                    field=path,
                )
            if scheme is not None and scheme.mode not in MLX_MODES:
                continue  # whose packing is not known here; the gates refuse it
            shapes = component_shapes(scheme, rows, columns)
            if adapter.has_expert_bias:
                shapes["bias"] = (rows,)
            for component, extents in shapes.items():
                expected = (shape.num_experts, *extents)
                if component not in parts:
                    raise UnsupportedLayoutError(
                        f"{parts['weight'].file}: {path}.{component} is missing",
                        path=parts["weight"].file,
                        layout="stacked",
                        field=f"{path}.{component}",
                    )
                entry = parts[component]
                if entry.shape != expected:
                    raise HeaderError(
                        f"{entry.file}: {path}.{component} is {list(entry.shape)}, but config.json makes it "
                        f"{list(expected)}",
                        path=entry.file,
                        field=f"{path}.{component}",
                    )
