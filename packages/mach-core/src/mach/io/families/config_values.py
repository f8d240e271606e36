"""Owns the reading of config values that no model of ours computes otherwise, shared by the families.

Which values a family takes is its own module's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mach.io.arch_adapter import MAX_LAYERS, MAX_WIDTH
from mach.io.config_file import ConfigFields

MAX_VOCABULARY = 1 << 24
LEAST_BASE, MOST_BASE = 1.001, 1e15
"""Of a rotary embedding: the logarithm of a base is divided by."""
SMALL, LARGE = 1e-6, 1e6

Values = dict[str, Any]
Allowed = Mapping[str, tuple[Any, ...]]
"""Field → the values that are computed; a field that is absent or null has the first of them."""


def width(fields: ConfigFields, name: str, default: int | None = None) -> int:
    """A size, at least 1."""
    return fields.integer(name, low=1, high=MAX_WIDTH, default=default)


def vocabulary(fields: ConfigFields, default: int | None = None, name: str = "vocab_size") -> int:
    """Rows of an embedding."""
    return fields.integer(name, low=1, high=MAX_VOCABULARY, default=default)


def with_defaults(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Values:
    """The values, those that are absent added."""
    return {**defaults, **values}


def tied(config: ConfigFields, text: ConfigFields, default: bool) -> bool:
    """Whether embedding and output projection are one; said outside, inside, or (alike) in both places.

    Raises:
        ConfigError: the two contradict each other.
    """
    inside = text.boolean("tie_word_embeddings", config.boolean("tie_word_embeddings", default))
    if config.boolean("tie_word_embeddings", inside) != inside:
        raise text.error("tie_word_embeddings", "contradicts the one outside")
    return inside


def layer_types(fields: ConfigFields, kinds: tuple[str, ...], period: tuple[str, ...]) -> list[str]:
    """The kind of each layer: as declared, else `period` again and again.

    Raises:
        ConfigError: there are not as many as layers, or one is none of `kinds`.
    """
    layers = fields.integer("num_hidden_layers", low=1, high=MAX_LAYERS)
    declared = fields.texts("layer_types", MAX_LAYERS)
    if declared is None:
        return [period[layer % len(period)] for layer in range(layers)]
    if not {*declared} <= {*kinds}:
        raise fields.error("layer_types", f"must hold {' and '.join(kinds)} alone")
    if len(declared) != layers:
        raise fields.error("layer_types", f"has {len(declared)} items for {layers} layers")
    return list(declared)


def rope_parameters(fields: ConfigFields) -> ConfigFields:
    """The rotary embedding's parameters, wherever a version of the format keeps them, as one object.

    transformers 5 nests everything under `rope_parameters`; before, the base stood outside and the rest, if
    there was any, under `rope_scaling`. An outer field counts only where the object has none.

    Returns:
        Fields `rope_type`, `rope_theta` and what the type needs.

    Raises:
        ConfigError: there is no base, or two objects contradict each other.
    """
    found, older = fields.object("rope_parameters"), fields.object("rope_scaling")
    if found is not None and older is not None and older.values and found.values != older.values:
        raise fields.error("rope_scaling", "contradicts rope_parameters; write all of it into the latter")
    found = found or older
    values = dict(found.values) if found is not None else {}
    for name in ("rope_theta", "partial_rotary_factor"):
        if values.get(name) is None and fields.values.get(name) is not None:
            values[name] = fields.values[name]
    kind = values.pop("type", None)
    values.setdefault("rope_type", kind or "default")
    if values["rope_type"] == "mrope":  # text alone turns every section alike
        values["rope_type"] = "default"
    inside = ConfigFields(values, fields.path, found.prefix if found is not None else fields.prefix)
    inside.number("rope_theta", low=LEAST_BASE, high=MOST_BASE)
    if values["rope_type"] == "yarn":
        _check_yarn(inside, fields)
    return inside


def _check_yarn(rope: ConfigFields, fields: ConfigFields) -> None:
    rope.values.setdefault("original_max_position_embeddings", fields.values.get("max_position_embeddings"))
    original = rope.integer("original_max_position_embeddings", low=1, high=1 << 31)
    rope.values["original_max_position_embeddings"] = original
    rope.number("factor", low=1.0, high=LARGE)
    for name in ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"):
        rope.number(name, low=SMALL, high=LARGE, default=1.0)
    rope.boolean("truncate", True)


def other_value(fields: ConfigFields, allowed: Allowed) -> str | None:
    """Why a value is refused that would change the result and that no model of ours computes, or None."""
    for name, values in allowed.items():
        value = fields.values.get(name)
        if value is not None and not any(type(value) is type(one) and value == one for one in values):
            shown = " or ".join(str(one).lower() for one in values)
            return f"{fields.path}: {fields.prefix}{name} is {str(value)[:60]!r}; only {shown} is computed"
    return None


def other_rope(rope: ConfigFields, kinds: tuple[str, ...], *, partial: bool = False) -> str | None:
    """Why a rotary embedding is refused, or None: its kind, or that it is `partial` where none may be."""
    allowed: dict[str, tuple[Any, ...]] = {"rope_type": kinds}
    if not partial:
        allowed["partial_rotary_factor"] = (1.0, 1)
    return other_value(rope, allowed)


def rotated_features(rope: ConfigFields, head: int) -> int:
    """How many features of a head are rotated.

    Raises:
        ConfigError: none, or an odd number.
    """
    rotated = int(head * rope.number("partial_rotary_factor", low=0.0, high=1.0, default=1.0))
    if not rotated or rotated % 2:
        raise rope.error(
            "partial_rotary_factor", f"makes {rotated} of {head} features rotated: no such pairs"
        )
    return rotated
