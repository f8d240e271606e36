"""Owns DeepSeek-V4's tensors besides routed experts: which there are, and what other spellings mean.

The model's own names are those of transformers 5. Published checkpoints say `layers.N.attn.wq_a.weight`,
`embed.weight` and so on, and MLX conversions the same below `model.`; `own_name` translates for the preflight
and the model alike.
"""

from __future__ import annotations

from collections.abc import Iterator

from mach.io.arch_adapter import MoeShape
from mach.io.config_file import ConfigFields
from mach.io.deepseek_v4_config import DeepseekV4Config, LayerPlan

Tensors = Iterator[tuple[str, tuple[int, ...]]]

UNUSED_PREFIX = "mtp."
"""Multi-token prediction: kept in checkpoints, bound by nothing yet."""


def deepseek_v4_tensors(config: ConfigFields, text: ConfigFields, shape: MoeShape) -> Tensors:
    """Every parameter but routed experts' as (own name, extents before quantisation).

    Raises:
        ConfigError: a field that the model needs is missing or impossible.
    """
    args = DeepseekV4Config.read(config)
    hidden, streams = args.hidden_size, args.hc_mult
    yield "model.embed_tokens.weight", (args.vocab_size, hidden)
    yield "model.norm.weight", (hidden,)
    if not args.tied:
        yield "lm_head.weight", (args.vocab_size, hidden)
    yield "model.hc_head.hc_fn", (streams, streams * hidden)
    yield "model.hc_head.hc_base", (streams,)
    yield "model.hc_head.hc_scale", (1,)
    for index, plan in enumerate(args.layers):
        block = f"model.layers.{index}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{block}.{norm}.weight", (hidden,)
        for mixer in ("attn_hc", "ffn_hc"):
            rows = (2 + streams) * streams
            yield f"{block}.{mixer}.fn", (rows, streams * hidden)
            yield f"{block}.{mixer}.base", (rows,)
            yield f"{block}.{mixer}.scale", (3,)
        yield from _attention(f"{block}.self_attn", args, plan)
        yield f"{block}.mlp.gate.weight", (args.experts, hidden)
        if plan.hashed:
            yield f"{block}.mlp.gate.tid2eid", (args.vocab_size, args.top_k)
        else:
            yield f"{block}.mlp.gate.e_score_correction_bias", (args.experts,)
        for projection, extents in (
            ("gate_proj", (args.expert_width, hidden)),
            ("up_proj", (args.expert_width, hidden)),
            ("down_proj", (hidden, args.expert_width)),
        ):
            yield f"{block}.mlp.shared_experts.{projection}.weight", extents


def _attention(block: str, args: DeepseekV4Config, plan: LayerPlan) -> Tensors:
    hidden, rank = args.hidden_size, args.q_lora_rank
    features = args.num_heads * args.head_dim
    yield f"{block}.q_a_proj.weight", (rank, hidden)
    yield f"{block}.q_a_norm.weight", (rank,)
    yield f"{block}.q_b_proj.weight", (features, rank)
    yield f"{block}.kv_proj.weight", (args.head_dim, hidden)
    yield f"{block}.kv_norm.weight", (args.head_dim,)
    yield f"{block}.o_a_proj.weight", (args.o_groups * args.o_lora_rank, features // args.o_groups)
    yield f"{block}.o_b_proj.weight", (hidden, args.o_groups * args.o_lora_rank)
    yield f"{block}.sinks", (args.num_heads,)
    if plan.ratio:
        yield from _compressor(f"{block}.compressor", hidden, args.head_dim, plan)
    if plan.indexed:
        indexer = f"{block}.compressor.indexer"
        yield from _compressor(indexer, hidden, args.index_head_dim, plan)
        yield f"{indexer}.q_b_proj.weight", (args.index_heads * args.index_head_dim, rank)
        yield f"{indexer}.scorer.weights_proj.weight", (args.index_heads, hidden)


def _compressor(block: str, hidden: int, dim: int, plan: LayerPlan) -> Tensors:
    width = 2 * dim if plan.indexed else dim  # overlapping groups have two series
    yield f"{block}.kv_proj.weight", (width, hidden)
    yield f"{block}.gate_proj.weight", (width, hidden)
    yield f"{block}.position_bias", (plan.ratio, width)
    yield f"{block}.kv_norm.weight", (dim,)


def own_name(name: str) -> str | None:
    """The model's name of a checkpoint's tensor, unchanged where it has none; None if nothing binds it."""
    bare = name.removeprefix("model.")
    if bare.startswith(UNUSED_PREFIX):
        return None
    first, *rest = bare.split(".")
    if first in _ENDS:
        return ".".join((_ENDS[first], *rest))
    if first.startswith("hc_head"):
        last = rest[0] if first == "hc_head" and len(rest) == 1 else first.removeprefix("hc_head_")
        return f"model.hc_head.hc_{last.removeprefix('hc_')}"
    if first != "layers" or len(rest) < 2:
        return name
    layer, part, *tail = rest
    if part.startswith(("hc_attn_", "hc_ffn_")):
        _, mixer, last = part.split("_", 2)
        return ".".join((f"model.layers.{layer}.{mixer}_hc.{last}", *tail))
    part = _PARTS.get(part, part)
    if part == "self_attn":
        tail = _attention_path(tail)
    elif part == "mlp":
        tail = _mlp_path(tail)
    return ".".join((f"model.layers.{layer}.{part}", *tail))


_ENDS = {
    "embed": "model.embed_tokens",
    "embed_tokens": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "lm_head": "lm_head",
}
_PARTS = {
    "attn": "self_attn",
    "ffn": "mlp",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_ATTENTION = {
    "wq_a": "q_a_proj",
    "q_norm": "q_a_norm",
    "wq_b": "q_b_proj",
    "wkv": "kv_proj",
    "wo_a": "o_a_proj",
    "wo_b": "o_b_proj",
    "attn_sink": "sinks",
}
_COMPRESSOR = {"wkv": "kv_proj", "wgate": "gate_proj", "ape": "position_bias", "norm": "kv_norm"}
_INDEXER = _COMPRESSOR | {"wq_b": "q_b_proj", "weights_proj": "scorer.weights_proj"}
_SHARED = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


def _attention_path(path: list[str]) -> list[str]:
    if path[:1] == ["indexer"]:  # beside the compressor as published, inside it in transformers
        path = ["compressor", *path]
    if path[:2] == ["compressor", "indexer"]:
        inner = path[3:] if path[2:3] == ["compressor"] else path[2:]
        return ["compressor", "indexer", *_first(inner, _INDEXER)]
    if path[:1] == ["compressor"]:
        return ["compressor", *_first(path[1:], _COMPRESSOR)]
    return _first(path, _ATTENTION)


def _mlp_path(path: list[str]) -> list[str]:
    if path == ["gate", "bias"]:
        return ["gate", "e_score_correction_bias"]
    if path[:1] == ["shared_experts"]:
        return ["shared_experts", *_first(path[1:], _SHARED)]
    return path


def _first(path: list[str], names: dict[str, str]) -> list[str]:
    return [names.get(path[0], path[0]), *path[1:]] if path else path
