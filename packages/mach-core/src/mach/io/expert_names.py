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


class ExpertTensorNames:
    """Recognises a family's tensor names in every spelling that its adapter lists."""

    def __init__(self, adapter: MoeArchAdapter) -> None:
        """Compile the adapter's templates."""
        names = adapter.names
        self._adapter = adapter
        blocks = (names.switch_block, *names.switch_block_aliases)
        components = "|".join((*STACKED_COMPONENTS, GLOBAL_SCALE))
        self._stacked = _any_of(blocks, rf"\.(gate_proj|up_proj|down_proj)\.({components})")
        self._raw: list[tuple[re.Pattern[str], str]] = []
        self._forms: dict[tuple[str, str], list[RawForm]] = {}
        for form in names.raw:
            spelled = "|".join(p.name for p in form.projections)
            separator = r"\." if form.layout == "per_expert" else "[._]"
            suffix = rf"\.({spelled})({separator}[a-z_]+|)"
            self._raw.append((_any_of(form.blocks, suffix), form.layout))
        self._others = [_other(template) for template in names.others]

    def place(self, name: str) -> ExpertPlace | None:
        """What `name` says, or None if it is not a routed expert's tensor."""
        if "expert" not in name and "switch_" not in name:
            return None
        if match := self._stacked.fullmatch(name):
            layer, projection, component = (text for text in match.groups() if text is not None)
            return ExpertPlace("stacked", int(layer), -1, projection, component)
        found: ExpertPlace | None = None
        for form, (pattern, layout) in zip(self._adapter.names.raw, self._raw, strict=True):
            if (found is not None and layout != found.kind) or not (match := pattern.fullmatch(name)):
                continue
            groups = [text for text in match.groups() if text is not None]
            suffix, raw, layer = groups[-1], groups[-2], int(groups[0])
            if found is None:
                expert = int(groups[1]) if layout == "per_expert" else -1
                projection = next(p.label for p in form.projections if p.name == raw)
                found = ExpertPlace(layout, layer, expert, projection, suffix.lstrip("._") or "weight")
            if form.role(suffix) is not None:
                found = found._replace(forms=(*found.forms, form))
        return found

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


def _any_of(templates: tuple[str, ...], suffix: str) -> re.Pattern[str]:
    paths = "|".join(
        re.escape(template).replace(r"\{layer\}", r"(\d{1,5})").replace(r"\{expert\}", r"(\d{1,6})")
        for template in templates
    )
    return re.compile(f"(?:{paths}){suffix}", re.ASCII)


def _other(template: str) -> re.Pattern[str]:
    escaped = re.escape(template).replace(r"\{layer\}", r"\d{1,5}")
    pattern = escaped.replace(r"\[", "(?:").replace(r"\|", "|").replace(r"\]", ")")
    companions = "|".join(_COMPANIONS)
    if pattern.endswith(r"\.weight"):
        pattern = pattern.removesuffix("weight") + f"(?:{companions})"
    elif r"\.(?:weight|" in pattern:
        pattern = pattern.replace(r"\.(?:weight|", rf"\.(?:{companions}|")
    return re.compile(pattern, re.ASCII)
