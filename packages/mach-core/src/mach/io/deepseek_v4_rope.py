"""Owns the reading of DeepSeek-V4's rotary embeddings from config.json, in all of their spellings.

Published checkpoints give `rope_theta`, `compress_rope_theta` and one flat `rope_scaling`; transformers 5
nests `rope_parameters` under `main` and `compress`. What angles follow from them is the model's business.
"""

from __future__ import annotations

from typing import NamedTuple

from mach.io.arch_adapter import MAX_WIDTH
from mach.io.config_file import ConfigFields

MAX_POSITIONS = 1 << 31


class Rope(NamedTuple):
    """One rotary embedding: plain if `factor` is 1, else YaRN.

    Attributes:
        theta: base of the frequencies.
        factor: how much the context was stretched.
        original_context: positions before stretching (YaRN alone).
        beta_fast: rotations from which a frequency is kept.
        beta_slow: rotations up to which it is divided by `factor`.
        amplitude: multiplies cosine and sine.
    """

    theta: float
    factor: float = 1.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    amplitude: float = 1.0


def rotated_features(fields: ConfigFields, head_dim: int, index_head_dim: int) -> int:
    """Rotated features, from `qk_rope_head_dim` or `partial_rotary_factor`; given both, they must agree."""
    name, factor = "partial_rotary_factor", None
    if fields.find(name)[1] is not None:
        factor = fields.number(name, low=0.0, high=1.0, default=0.0)
    if fields.find("qk_rope_head_dim")[1] is not None:
        name = "qk_rope_head_dim"
        dim = fields.integer(name, low=2, high=MAX_WIDTH)
        if factor is not None and int(head_dim * factor) != dim:
            raise fields.error(name, f"is {dim}, but partial_rotary_factor makes it {int(head_dim * factor)}")
    else:
        dim = int(head_dim * (0.125 if factor is None else factor))
    if dim < 2 or dim % 2 or dim > min(head_dim, index_head_dim):
        raise fields.error(
            name, f"makes {dim} rotated features: it must be even, and fit head_dim and index_head_dim"
        )
    plain = fields.integer("qk_nope_head_dim", low=0, high=MAX_WIDTH, default=head_dim - dim)
    if plain != head_dim - dim:
        raise fields.error("qk_nope_head_dim", f"is {plain}, but head_dim leaves {head_dim - dim}")
    for block in ("rope_parameters", "rope_scaling", "compress_rope_parameters"):
        outer = fields.object(block)
        for part in (outer, outer and outer.object("main"), outer and outer.object("compress")):
            if part is not None and part.find("partial_rotary_factor")[1] is not None:
                own = int(head_dim * part.number("partial_rotary_factor", low=0.0, high=1.0, default=0.0))
                if own != dim:
                    raise part.error("partial_rotary_factor", f"makes {own} rotated features, not {dim}")
    return dim


def ropes(fields: ConfigFields) -> tuple[Rope, Rope]:
    """The rotary embeddings of plain and of compressed layers.

    Flat parameters (`rope_scaling`, or `rope_parameters` without `main` and `compress`) are the compressed
    layers' alone; `compress_rope_parameters` is an older spelling of theirs.
    """
    theta = fields.number("rope_theta", low=2.0, high=1e15, default=10000.0)
    compressed = fields.number("compress_rope_theta", low=2.0, high=1e15, default=160000.0)
    given = fields.object("rope_parameters") or fields.object("rope_scaling")
    if given is not None and {"main", "compress"} <= given.values.keys():
        main, compress = given.object("main"), given.object("compress")
        if main is None or compress is None:
            raise given.error("main" if main is None else "compress", "is null; give its parameters")
        for part in (main, compress):
            if _kind(part) == "yarn" and part.find("attention_factor")[1] is None:
                # transformers would then derive one, which no published model was made with.
                raise part.error("attention_factor", "is missing; it is 1.0 for the published models")
        return _rope(main, _theta(main, theta)), _rope(compress, _theta(compress, compressed))
    own = fields.object("compress_rope_parameters")
    if own is not None:
        return Rope(theta), _rope(own, _theta(own, compressed))
    return Rope(theta), Rope(compressed) if given is None else _rope(given, compressed)


def _theta(fields: ConfigFields, default: float) -> float:
    return fields.number("rope_theta", low=2.0, high=1e15, default=default)


def _kind(fields: ConfigFields) -> str:
    return fields.text("rope_type", fields.text("type", "default"))


def _rope(fields: ConfigFields, theta: float) -> Rope:
    unknown = fields.values.keys() - _ROPE_FIELDS
    if unknown:
        raise fields.error(min(unknown)[:80], "is no parameter of a rotary embedding that mach knows")
    kind = _kind(fields)
    if kind == "default":
        return Rope(theta)
    if kind != "yarn":
        raise fields.error("rope_type", f"is {kind[:80]!r}; DeepSeek-V4 has default and yarn")
    if not fields.boolean("truncate", True):
        raise fields.error("truncate", "must be true: DeepSeek-V4 rounds the YaRN ramp's ends")
    if fields.find("factor")[1] is None:
        raise fields.error("factor", "is missing; YaRN divides slow frequencies by it")
    return Rope(
        theta=theta,
        factor=fields.number("factor", low=1.0, high=1e6, default=1.0),
        original_context=fields.integer("original_max_position_embeddings", low=1, high=MAX_POSITIONS),
        beta_fast=fields.number("beta_fast", low=1e-6, high=1e6, default=32.0),
        beta_slow=fields.number("beta_slow", low=1e-6, high=1e6, default=1.0),
        amplitude=fields.number("attention_factor", low=1e-6, high=1e6, default=1.0),
    )


# mscale and mscale_all_dim are published, and overridden by an attention factor of 1 in every implementation.
_ROPE_FIELDS = {
    "type", "rope_type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings",
    "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate",
}  # fmt: skip
