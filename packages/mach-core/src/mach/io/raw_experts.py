"""Owns the finding of each expert's tensors in a raw checkpoint, and the check that they are as they must be.

Headers and config.json alone. The answer says which bytes are whose and how they are encoded; `mach_store`
turns them into records. Every refusal names file, layer, expert and tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mach.errors import UnsupportedLayoutError
from mach.io.expert_names import ExpertTensorNames
from mach.io.inspection import CheckpointInspection
from mach.io.quantization import MLX_MODES
from mach.io.raw_form import (
    ENCODINGS,
    FLOAT_DTYPES,
    FP4_GROUP,
    FP4_SCALE_DTYPES,
    FP8_BLOCK,
    FP8_SCALE_DTYPES,
    RawForm,
    RawProjection,
)
from mach.io.safetensors_header import TensorEntry

RAW_LAYOUTS = ("per_expert", "fused")
Extents = tuple[int, ...]


class RawPart(NamedTuple):
    """One parameter of one projection of a layer.

    Attributes:
        dtype: safetensors' name, the same for every expert.
        shape: one expert's extents.
        entries: an entry per expert, or a single one with the experts on axis 0.
        nbytes: one expert's bytes.
    """

    dtype: str
    shape: Extents
    entries: Sequence[TensorEntry]
    nbytes: int

    def start(self, expert: int) -> tuple[str, int]:
        """The file that holds `expert`'s bytes, and their offset in it."""
        if len(self.entries) == 1:
            return self.entries[0].file, self.entries[0].start + expert * self.nbytes
        return self.entries[expert].file, self.entries[expert].start


class RawWeight(NamedTuple):
    """One projection of a layer as stored, of one expert or of all.

    Attributes:
        projection: its name in the file and the MLX projections that it holds.
        form: how these share it, and its axes.
        encoding: a key of ENCODINGS.
        rows: outputs of everything that it holds.
        columns: inputs.
        block: for fp8, the rows and columns that share a scale.
        parts: `weight`, and where there are such, `scale` and `bias`.
    """

    projection: RawProjection
    form: RawForm
    encoding: str
    rows: int
    columns: int
    block: tuple[int, int]
    parts: Mapping[str, RawPart]


class RawExperts(NamedTuple):
    """The routed experts of a raw checkpoint: layer → its projections, in the form's order."""

    form: RawForm
    layers: Mapping[int, tuple[RawWeight, ...]]


def raw_experts(inspection: CheckpointInspection) -> RawExperts:
    """Find the routed experts' tensors of a checkpoint with a raw layout.

    Raises:
        UnsupportedLayoutError: a tensor is missing, too many, or of another shape, dtype or encoding than the
            family's forms have.
        ConfigError: `weight_block_size` is malformed.
    """
    assert inspection.layout in RAW_LAYOUTS
    mode = inspection.quantization.mode
    if mode not in ("none", "fp8", *MLX_MODES):
        raise _refused(
            inspection,
            inspection.directory,
            f"{mode} experts are not read: take the original checkpoint, or an MLX conversion of it",
        )
    found, form = _find(inspection)
    shape = inspection.shape
    block = fp8_block(inspection)
    layers: dict[int, tuple[RawWeight, ...]] = {}
    for layer in shape.moe_layers:
        weights = []
        for projection in form.projections:
            rows, columns = shape.expert_width * len(projection.holds), shape.hidden_size
            if projection.holds == ("down_proj",):
                rows, columns = columns, shape.expert_width
            weights.append(_weight(inspection, form, projection, layer, (rows, columns), block, found))
        layers[layer] = tuple(weights)
    return RawExperts(form, layers)


_Key = tuple[int, int, str, str]
_Named = tuple[str, TensorEntry]


def _find(inspection: CheckpointInspection) -> tuple[dict[_Key, _Named], RawForm]:
    """(layer, expert, projection, role) → name and entry; and the form whose names these are."""
    names = ExpertTensorNames(inspection.adapter)
    placed = []
    candidates = [form for form in inspection.adapter.names.raw if form.layout == inspection.layout]
    forms: tuple[RawForm, ...] = ()
    for name, entry in inspection.tensors.items():
        place = names.place(name)
        if place is None:
            continue
        if not place.forms:
            raise _refused(
                inspection, entry.file, f"{name}: no raw form of {inspection.adapter.model_type} has it", name
            )
        if place.forms is not forms:
            forms = place.forms
            candidates = [form for form in candidates if form in forms]
            if not candidates:
                raise _refused(
                    inspection, entry.file, f"{name}: belongs to another raw form than the others", name
                )
        placed.append((name, entry, place))
    form = candidates[0]
    suffixes = {"weight": form.weight, "scale": form.scale, "bias": form.bias}
    roles = {suffix.lstrip("._") or "weight": role for role, suffix in suffixes.items() if suffix is not None}
    found: dict[_Key, _Named] = {}
    for name, entry, place in placed:
        key = (place.layer, place.expert, place.projection, roles[place.component])
        if key in found:
            raise _refused(inspection, entry.file, f"{name}: is there twice, also as {found[key][0]}", name)
        found[key] = name, entry
    return found, form


def _weight(
    inspection: CheckpointInspection,
    form: RawForm,
    projection: RawProjection,
    layer: int,
    extents: tuple[int, int],
    block: tuple[int, int],
    found: Mapping[_Key, _Named],
) -> RawWeight:
    rows, columns = extents
    stacked = form.layout == "fused"
    experts = [-1] if stacked else list(range(inspection.shape.num_experts))

    def part(role: str, shapes: Sequence[Extents], dtypes: Sequence[str]) -> RawPart:
        entries = []
        for expert in experts:
            where = f"layer {layer}" + ("" if stacked else f", expert {expert}")
            named = found.get((layer, expert, projection.label, role))
            if named is None:
                weight, entry = found[layer, expert, projection.label, "weight"]
                suffix = {"scale": form.scale, "bias": form.bias}[role]
                raise _refused(
                    inspection,
                    entry.file,
                    f"{where}: {weight} ({entry.dtype}) has no {role}: "
                    f"{weight.removesuffix(form.weight)}{suffix} is missing",
                    weight,
                )
            name, entry = named
            wanted = [(inspection.shape.num_experts, *shape) if stacked else shape for shape in shapes]
            if entry.dtype not in dtypes:
                raise _refused(
                    inspection,
                    entry.file,
                    f"{where}: {name} is {entry.dtype}, not {' or '.join(dtypes)}",
                    name,
                )
            if entry.shape not in wanted:
                raise _refused(
                    inspection,
                    entry.file,
                    f"{where}: {name} is {list(entry.shape)}, but config.json makes it "
                    f"{' or '.join(str(list(shape)) for shape in wanted)}",
                    name,
                )
            entries.append(entry)
            # The first expert decides for all: a layer's records are alike.
            dtypes, shapes = (entry.dtype,), (entry.shape[1:] if stacked else entry.shape,)
        nbytes = entries[0].nbytes // (inspection.shape.num_experts if stacked else 1)
        return RawPart(dtypes[0], shapes[0], entries, nbytes)

    name, entry = found[layer, experts[0], projection.label, "weight"]
    encoding = next((e for e in form.encodings if entry.dtype in ENCODINGS[e]), None)
    if encoding is None:
        allowed = [dtype for e in form.encodings for dtype in ENCODINGS[e]]
        first = "" if stacked else ", expert 0"
        raise _refused(
            inspection,
            entry.file,
            f"layer {layer}{first}: {name} is {entry.dtype}, not {' or '.join(allowed)}",
            name,
        )
    groups = -(-columns // FP4_GROUP)
    if encoding == "fp4":
        shapes: list[Extents] = [(rows, columns // 2), (rows, groups, FP4_GROUP // 2)]
        if columns % FP4_GROUP:
            raise _refused(
                inspection,
                entry.file,
                f"layer {layer}: {name}: {columns} inputs are no multiple of {FP4_GROUP}",
                name,
            )
    else:
        shapes = [(rows, columns) if form.axes == "out_in" else (columns, rows)]
    parts = {"weight": part("weight", shapes, (entry.dtype,))}
    if encoding == "fp4":
        parts["scale"] = part("scale", [(rows, groups)], FP4_SCALE_DTYPES)
    elif encoding == "fp8":
        grid = (-(-rows // block[0]), -(-columns // block[1]))
        parts["scale"] = part("scale", [grid], FP8_SCALE_DTYPES)
    else:
        for expert in experts:
            if surplus := found.get((layer, expert, projection.label, "scale")):
                raise _refused(
                    inspection,
                    surplus[1].file,
                    f"layer {layer}: {surplus[0]} stands beside plain {entry.dtype} weights",
                    surplus[0],
                )
    if inspection.adapter.has_expert_bias:
        parts["bias"] = part("bias", [(rows,)], FLOAT_DTYPES)
    return RawWeight(projection, form, encoding, rows, columns, block, parts)


def fp8_block(inspection: CheckpointInspection) -> tuple[int, int]:
    """The rows and columns that share a scale in a checkpoint's fp8 weights, experts' and others'.

    Raises:
        ConfigError: `weight_block_size` is malformed.
    """
    fields = inspection.config.object("quantization_config")
    if fields is None:
        fields = inspection.text_config.object("quantization_config")
    given = None if fields is None else fields.integers("weight_block_size", 1, 1 << 16, 2)
    if given is None:
        return FP8_BLOCK
    if len(given) != 2:
        assert fields is not None
        raise fields.error("weight_block_size", f"has {len(given)} extents, not two")
    return given[0], given[1]


def _refused(
    inspection: CheckpointInspection, path: str, problem: str, field: str | None = None
) -> UnsupportedLayoutError:
    return UnsupportedLayoutError(f"{path}: {problem}", path=path, layout=inspection.layout, field=field)
