"""Owns the reading of tensor names: which are routed experts', which other ones, which unknown."""

from __future__ import annotations

import re
from typing import NamedTuple

from mach.io.arch_adapter import MoeArchAdapter
from mach.io.raw_form import RawForm

STACKED_COMPONENTS = ("weight", "scales", "biases", "bias")
GLOBAL_SCALE = "global_scale"
"""A tensor that mlx-lm writes beside nvfp4 experts on demand; mach does not compute with it."""

CLAIMS = ("expert", "other", "unused", "unclaimed")
_COMPANIONS = ("weight", "scales", "biases", "weight_scale_inv", "scale")
_FOREIGN_WEIGHTS = ("qweight", "weight_packed")


class ExpertPlace(NamedTuple):
    """What a routed-expert tensor's name says.

    Attributes:
        kind: the layout that spells names so: `stacked`, `per_expert` or `fused`.
        layer: decoder layer.
        expert: expert within it; -1 where one tensor holds all.
        projection: MLX's name; `gate_up_proj` in fused tensors.
        component: parameter name in the file, e.g. `weight`, `scales`, `blocks`.
        forms: the raw forms of the family that name a tensor so; empty when stacked, and for a parameter
            that no form of the family has.
    """

    kind: str
    layer: int
    expert: int
    projection: str
    component: str
    forms: tuple[RawForm, ...] = ()

    @property
    def is_weight(self) -> bool:
        """Whether it is the one parameter that every way of packing has."""
        if self.kind == "stacked":
            return self.component == "weight"
        return self.component in ("weight", "blocks", *_FOREIGN_WEIGHTS)


class _RawNames(NamedTuple):
    """One block of a raw layout: the pattern of its tensors' names, and what those parts mean."""

    pattern: re.Pattern[str]
    layout: str
    labels: dict[str, str]
    forms: dict[tuple[str, str], tuple[RawForm, ...]]


class ExpertTensorNames:
    """Recognises a family's tensor names in every spelling that its adapter lists."""

    def __init__(self, adapter: MoeArchAdapter) -> None:
        """Compile the adapter's templates."""
        names = adapter.names
        self._adapter = adapter
        components = "|".join((*STACKED_COMPONENTS, GLOBAL_SCALE))
        suffix = rf"\.(gate_proj|up_proj|down_proj)\.({components})"
        self._stacked = [_pattern(b, suffix) for b in (names.switch_block, *names.switch_block_aliases)]
        blocks = dict.fromkeys((form.layout, block) for form in names.raw for block in form.blocks)
        self._raw = [_raw_names(names.raw, layout, block) for layout, block in blocks]
        self._others = [_other(template) for template in names.others]

    def place(self, name: str) -> ExpertPlace | None:
        """What `name` says, or None if it is not a routed expert's tensor."""
        if "expert" not in name and "switch_" not in name:
            return None
        for pattern in self._stacked:
            if match := pattern.fullmatch(name):
                layer, projection, component = match.groups()
                return ExpertPlace("stacked", int(layer), -1, projection, component)
        for pattern, layout, labels, forms in self._raw:
            if match := pattern.fullmatch(name):
                layer, *expert, projection, suffix = match.groups()
                return ExpertPlace(
                    layout,
                    int(layer),
                    int(expert[0]) if expert else -1,
                    labels[projection],
                    suffix.lstrip("._") or "weight",
                    forms.get((projection, suffix), ()),
                )
        return None

    def claim(self, name: str) -> str:
        """One of CLAIMS: what the family takes a tensor for.

        `expert`: a routed expert's, of a form that is read. `other`: a parameter of the model besides.
        `unused`: known, kept with the checkpoint and not loaded (vision, audio, multi-token prediction).
        `unclaimed`: not known at all.
        """
        place = self.place(name)
        if place is not None:
            read = place.forms or (place.kind == "stacked" and self._takes(place.component))
            return "expert" if read else "unclaimed"
        if self._adapter.is_unused(name):
            return "unused"
        return "other" if any(pattern.fullmatch(name) for pattern in self._others) else "unclaimed"

    def _takes(self, component: str) -> bool:
        return component != GLOBAL_SCALE and (component != "bias" or self._adapter.has_expert_bias)


def _raw_names(forms: tuple[RawForm, ...], layout: str, block: str) -> _RawNames:
    sharing = [form for form in forms if form.layout == layout and block in form.blocks]
    labels = {projection.name: projection.label for form in sharing for projection in form.projections}
    named: dict[tuple[str, str], tuple[RawForm, ...]] = {}
    for form in sharing:
        for projection in form.projections:
            for suffix in (form.weight, form.scale, form.bias):
                if suffix is not None:
                    key = projection.name, suffix
                    named[key] = (*named.get(key, ()), form)
    separator = r"\." if layout == "per_expert" else "[._]"
    pattern = _pattern(block, rf"\.({'|'.join(labels)})({separator}[a-z_]+|)")
    return _RawNames(pattern, layout, labels, named)


def _pattern(template: str, suffix: str) -> re.Pattern[str]:
    path = re.escape(template).replace(r"\{layer\}", r"(\d{1,5})").replace(r"\{expert\}", r"(\d{1,6})")
    return re.compile(path + suffix, re.ASCII)


def _other(template: str) -> re.Pattern[str]:
    escaped = re.escape(template).replace(r"\{layer\}", r"\d{1,5}")
    pattern = escaped.replace(r"\[", "(?:").replace(r"\|", "|").replace(r"\]", ")")
    companions = "|".join(_COMPANIONS)
    if pattern.endswith(r"\.weight"):
        pattern = pattern.removesuffix("weight") + f"(?:{companions})"
    elif r"\.(?:weight|" in pattern:
        pattern = pattern.replace(r"\.(?:weight|", rf"\.(?:{companions}|")
    return re.compile(pattern, re.ASCII)
