"""Owns the reading of DeepSeek-V4's config.json: every field that the model obeys, validated and normalised.

Published checkpoints (`compress_ratios`, `num_hash_layers`) and transformers 5 (`layer_types`,
`mlp_layer_types`) spell one thing differently; here they become one. Defaults are those of transformers'
`DeepseekV4Config`. What the model cannot honour is refused with the field's name. The preflight and the model
read this same value, so that they cannot disagree; it knows no tensor and no array.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mach.io.arch_adapter import MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH
from mach.io.config_file import ConfigFields
from mach.io.deepseek_v4_rope import MAX_POSITIONS, Rope, ropes, rotated_features

MAX_RATIO = 1 << 16
MAX_STREAMS = 64
SCORES = ("sqrtsoftplus", "sigmoid")

SLIDING, SPARSE, HEAVY = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
_PUBLISHED = {0: SLIDING, 4: SPARSE, 128: HEAVY}
_DEFAULT_RATES = {SPARSE: 4, HEAVY: 128}


class LayerPlan(NamedTuple):
    """How one decoder layer attends and routes.

    Attributes:
        ratio: tokens per compressed entry; 0 for a layer that sees its sliding window alone.
        indexed: whether an indexer chooses among the compressed entries, whose groups then overlap.
        hashed: whether experts come from the token id through a table, not from scores.
    """

    ratio: int
    indexed: bool
    hashed: bool


class DeepseekV4Config(NamedTuple):
    """What DeepSeek-V4's model is built from.

    Attributes:
        layers: one plan per decoder layer.
        rope_dim: trailing features of a head that are rotated; even.
        main_rope: of layers without compression.
        compress_rope: of layers with compression, for their window as well.
        mtp_layers: multi-token-prediction blocks that the checkpoint carries; this model has none of them.
    """

    vocab_size: int
    hidden_size: int
    layers: tuple[LayerPlan, ...]
    num_heads: int
    head_dim: int
    rope_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    sliding_window: int
    index_heads: int
    index_head_dim: int
    index_topk: int
    experts: int
    top_k: int
    expert_width: int
    scoring: str
    routed_scaling: float
    swiglu_limit: float
    hc_mult: int
    hc_iterations: int
    hc_eps: float
    norm_eps: float
    main_rope: Rope
    compress_rope: Rope
    tied: bool
    mtp_layers: int

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DeepseekV4Config:
        """As `read`, from a parsed config.json, in mlx-lm's convention."""
        return cls.read(ConfigFields(values, "config.json"))

    @classmethod
    def read(cls, fields: ConfigFields) -> DeepseekV4Config:
        """The model that `fields`, a whole config.json, describes.

        Raises:
            ConfigError: a field is missing, out of range, contradicts another, or asks for what the model
                does not do.
        """
        _refuse_what_is_not_done(fields)
        experts = fields.integer("n_routed_experts", "num_local_experts", low=1, high=MAX_EXPERTS)
        num_heads, head_dim = _width(fields, "num_attention_heads"), _width(fields, "head_dim")
        index_head_dim = _width(fields, "index_head_dim", 128)
        rope_dim = rotated_features(fields, head_dim, index_head_dim)
        o_groups = _width(fields, "o_groups", 8)
        if num_heads * head_dim % o_groups:
            raise fields.error("o_groups", f"is {o_groups}, which does not divide {num_heads} × {head_dim}")
        main, compress = ropes(fields)
        return cls(
            vocab_size=fields.integer("vocab_size", low=1, high=1 << 24),
            hidden_size=_width(fields, "hidden_size"),
            layers=_layers(fields),
            num_heads=num_heads,
            head_dim=head_dim,
            rope_dim=rope_dim,
            q_lora_rank=_width(fields, "q_lora_rank", 1024),
            o_groups=o_groups,
            o_lora_rank=_width(fields, "o_lora_rank", 1024),
            sliding_window=fields.integer("sliding_window", low=1, high=MAX_POSITIONS, default=128),
            index_heads=_width(fields, "index_n_heads", 64),
            index_head_dim=index_head_dim,
            index_topk=fields.integer("index_topk", low=1, high=MAX_POSITIONS, default=512),
            experts=experts,
            top_k=fields.integer("num_experts_per_tok", low=1, high=experts),
            expert_width=_width(fields, "moe_intermediate_size"),
            scoring=_choice(fields, "scoring_func", SCORES),
            routed_scaling=_fraction(fields, "routed_scaling_factor", 1e-6, 1e6, 1.5),
            swiglu_limit=_fraction(fields, "swiglu_limit", 1e-6, 1e30, 10.0),
            hc_mult=fields.integer("hc_mult", low=1, high=MAX_STREAMS, default=4),
            hc_iterations=fields.integer("hc_sinkhorn_iters", low=1, high=1000, default=20),
            hc_eps=_fraction(fields, "hc_eps", 0.0, 1.0, 1e-6),
            norm_eps=_fraction(fields, "rms_norm_eps", 0.0, 1.0, 1e-6),
            main_rope=main,
            compress_rope=compress,
            tied=fields.boolean("tie_word_embeddings", False),
            mtp_layers=fields.integer("num_nextn_predict_layers", low=0, high=MAX_LAYERS, default=0),
        )


def _refuse_what_is_not_done(fields: ConfigFields) -> None:
    """Raise about every field whose value would be ignored."""
    for name in _NEVER_NULL:
        if fields.values.get(name, "") is None:
            raise fields.error(name, "is null; give its value, or leave it out")
    for name, only in (("num_key_value_heads", 1), ("n_shared_experts", 1)):
        if fields.integer(name, low=0, high=MAX_WIDTH, default=only) != only:
            raise fields.error(name, f"must be {only}: DeepSeek-V4's model has no other form")
    for name, only in (("attention_bias", False), ("mlp_bias", False), ("rope_interleave", True)):
        if fields.boolean(name, only) is not only:
            raise fields.error(name, f"must be {str(only).lower()}: DeepSeek-V4's model has no other form")
    if not fields.boolean("norm_topk_prob", True):
        raise fields.error("norm_topk_prob", "must be true: DeepSeek-V4's router always normalises")
    _choice(fields, "hidden_act", ("silu",))
    _choice(fields, "topk_method", ("noaux_tc",))
    for name, same in (
        ("intermediate_size", "moe_intermediate_size"),
        ("num_local_experts", "n_routed_experts"),
    ):
        values = [fields.values[alias] for alias in (name, same) if fields.values.get(alias) is not None]
        if len(values) == 2 and values[0] != values[1]:
            raise fields.error(name, f"and {same} differ, and transformers takes one for the other")
    for name in ("n_group", "topk_group"):
        if fields.integer(name, low=0, high=MAX_EXPERTS, default=1) > 1:
            raise fields.error(name, "must be 1 or null: DeepSeek-V4's router knows no groups of experts")


# transformers' DeepseekV4Config, which loading the tokenizer builds, refuses a null here.
_NEVER_NULL = (
    "attention_bias", "compress_rope_theta", "hc_eps", "hc_mult", "hc_sinkhorn_iters", "head_dim",
    "hidden_act", "index_head_dim", "index_n_heads", "index_topk", "max_position_embeddings", "mlp_bias",
    "n_shared_experts", "norm_topk_prob", "num_key_value_heads", "num_nextn_predict_layers", "o_groups",
    "o_lora_rank", "q_lora_rank", "rms_norm_eps", "rope_theta", "routed_scaling_factor", "scoring_func",
    "sliding_window", "swiglu_limit", "tie_word_embeddings",
)  # fmt: skip


def _layers(fields: ConfigFields) -> tuple[LayerPlan, ...]:
    count = fields.integer("num_hidden_layers", low=1, high=MAX_LAYERS)
    hashed = _hashed(fields, count)
    return tuple(
        LayerPlan(ratio, indexed, is_hashed)
        for (ratio, indexed), is_hashed in zip(_attention(fields, count), hashed, strict=True)
    )


def _attention(fields: ConfigFields, count: int) -> list[tuple[int, bool]]:
    """Per layer: tokens per compressed entry, and whether an indexer chooses among them."""
    rates = _rates(fields)
    types = fields.texts("layer_types", 2 * MAX_LAYERS)
    if types is not None:
        _at_least(fields, "layer_types", types, count)
        for name in types:
            if name not in (SLIDING, SPARSE, HEAVY):
                raise fields.error("layer_types", f"holds {name[:80]!r}, not {SLIDING}, {SPARSE} or {HEAVY}")
        both = _DEFAULT_RATES | rates
        return [(both.get(name, 0), name == SPARSE) for name in types[:count]]
    # Published lists also have an entry for each multi-token-prediction block.
    ratios = fields.integers("compress_ratios", 0, MAX_RATIO, 2 * MAX_LAYERS)
    if ratios is None:
        raise fields.error(
            "compress_ratios", "is missing, and layer_types too: one says how each layer attends"
        )
    _at_least(fields, "compress_ratios", ratios, count)
    for ratio in ratios:
        if ratio not in _PUBLISHED:
            raise fields.error(
                "compress_ratios",
                f"holds {ratio}: 0, 4 and 128 are known; give layer_types and compress_rates for others",
            )
    kinds = [_PUBLISHED[ratio] for ratio in ratios[:count]]
    return [(rates.get(kind, ratio), kind == SPARSE) for kind, ratio in zip(kinds, ratios, strict=False)]


def _rates(fields: ConfigFields) -> dict[str, int]:
    """The rates that are spelled out, by the kind of layer."""
    rates = {}
    nested = fields.object("compress_rates")
    if nested is not None:
        for name in nested.values:
            if name not in (SPARSE, HEAVY):
                raise nested.error(name[:80], f"is no kind of compressed layer: {SPARSE} and {HEAVY} are")
            rates[name] = nested.integer(name, low=1, high=MAX_RATIO)
    for kind, name in ((SPARSE, "compress_rate_csa"), (HEAVY, "compress_rate_hca")):
        if fields.find(name)[1] is not None:
            rates[kind] = fields.integer(name, low=1, high=MAX_RATIO)
    return rates


def _hashed(fields: ConfigFields, count: int) -> tuple[bool, ...]:
    kinds = fields.texts("mlp_layer_types", 2 * MAX_LAYERS)
    if kinds is None:
        first = fields.integer("num_hash_layers", low=0, high=MAX_LAYERS, default=3)
        return tuple(layer < first for layer in range(count))
    _at_least(fields, "mlp_layer_types", kinds, count)
    if not {*kinds} <= {"hash_moe", "moe"}:
        raise fields.error("mlp_layer_types", "must hold hash_moe and moe alone")
    return tuple(kind == "hash_moe" for kind in kinds[:count])


def _at_least(fields: ConfigFields, name: str, items: tuple[Any, ...], count: int) -> None:
    if len(items) < count:
        raise fields.error(name, f"has {len(items)} items for {count} layers")


def _width(fields: ConfigFields, name: str, default: int | None = None) -> int:
    return fields.integer(name, low=1, high=MAX_WIDTH, default=default)


def _choice(fields: ConfigFields, name: str, allowed: tuple[str, ...]) -> str:
    value = fields.text(name, allowed[0])
    if value not in allowed:
        raise fields.error(name, f"is {value[:80]!r}; this model has {', '.join(allowed)}")
    return value


def _fraction(fields: ConfigFields, name: str, low: float, high: float, default: float) -> float:
    """A number that transformers takes only with a decimal point."""
    if type(fields.values.get(name)) is int:
        raise fields.error(name, "is an integer; write it with a decimal point, as transformers demands")
    return fields.number(name, low=low, high=high, default=default)
