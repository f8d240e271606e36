"""Owns the size of a request's key-value state, per cache kind, from config.json alone.

The formulas follow the caches that mlx-lm 0.32 makes (`make_cache` of each family) and, for `compressed`, the
one of mach's own DeepSeek-V4 (`mach_store.deepseek_v4.cache`).
"""

from __future__ import annotations

from typing import NamedTuple

from mach.io.arch_adapter import MAX_LAYERS, MAX_WIDTH, MoeArchAdapter
from mach.io.config_file import ConfigFields
from mach.io.deepseek_v4_config import DeepseekV4Config

KV_STEP = 256
"""Tokens by which mlx-lm's KVCache grows."""
COMPRESSED_STEP = 64
"""Entries by which a compressed cache grows."""
DEFAULT_CONTEXT = 8192
MAX_CONTEXT = 1 << 31


class KvBytes(NamedTuple):
    """Key-value state of one request.

    Attributes:
        total: bytes at the context length.
        parts: label → bytes, e.g. how much is full attention and how much a sliding window.
    """

    total: int
    parts: dict[str, int]


def context_length(adapter: MoeArchAdapter, config: ConfigFields, asked: int | None) -> int:
    """Tokens to estimate for: what was asked, else the model's maximum, but not more than 8192."""
    if asked is not None:
        return asked
    text = adapter.text_config(config)
    most = text.integer("max_position_embeddings", low=1, high=MAX_CONTEXT, default=DEFAULT_CONTEXT)
    return min(most, DEFAULT_CONTEXT)


def kv_cache_bytes(
    adapter: MoeArchAdapter, config: ConfigFields, context: int, element_bytes: int
) -> KvBytes:
    """Bytes of key-value state at `context` tokens with `element_bytes` per activation.

    Raises:
        ConfigError: a field that the estimate needs is missing or impossible.
    """
    text = adapter.text_config(config)
    parts = _KINDS[adapter.kv_cache_kind](text, context, element_bytes)
    return KvBytes(sum(parts.values()), {label: size for label, size in parts.items() if size})


def _standard(text: ConfigFields, context: int, element: int) -> dict[str, int]:
    layers = _layers(text)
    return {"full attention": layers * _token_bytes(text, element) * _stepped(context)}


def _hybrid_gdn(text: ConfigFields, context: int, element: int) -> dict[str, int]:
    layers = _layers(text)
    declared = text.texts("layer_types", MAX_LAYERS)
    interval = text.integer("full_attention_interval", low=1, high=MAX_LAYERS, default=4)
    full = layers // interval if declared is None else declared[:layers].count("full_attention")
    key_heads = text.integer("linear_num_key_heads", low=1, high=MAX_WIDTH)
    value_heads = text.integer("linear_num_value_heads", low=1, high=MAX_WIDTH)
    key_dim = text.integer("linear_key_head_dim", low=1, high=MAX_WIDTH)
    value_dim = text.integer("linear_value_head_dim", low=1, high=MAX_WIDTH)
    kernel = text.integer("linear_conv_kernel_dim", low=1, high=1024, default=4)
    convolution = (kernel - 1) * (2 * key_heads * key_dim + value_heads * value_dim) * element
    recurrent = value_heads * value_dim * key_dim * 4  # kept in float32
    return {
        "full attention": full * _token_bytes(text, element) * _stepped(context),
        "recurrent state": (layers - full) * (convolution + recurrent),
    }


def _rotating(text: ConfigFields, context: int, element: int) -> dict[str, int]:
    layers = _layers(text)
    # The last layers of a small Gemma reuse the keys and values of earlier ones.
    own = layers - text.integer("num_kv_shared_layers", low=0, high=layers, default=0)
    window = text.integer("sliding_window", low=1, high=MAX_CONTEXT, default=512)
    sliding = sum(kind != "full_attention" for kind in _layer_types(text, layers)[:own])
    heads, dim = _heads(text)
    full_heads = text.integer("num_global_key_value_heads", low=1, high=MAX_WIDTH, default=heads)
    full_dim = text.integer("global_head_dim", low=1, high=MAX_WIDTH, default=dim)
    return {
        "full attention": (own - sliding) * 2 * full_heads * full_dim * element * _stepped(context),
        "sliding window": sliding * 2 * heads * dim * element * min(window, _stepped(context)),
    }


def _compressed(text: ConfigFields, context: int, element: int) -> dict[str, int]:
    args = DeepseekV4Config.read(text)
    rows = keys = open_groups = 0
    for plan in args.layers:
        if not plan.ratio:
            continue
        # Keys and gates of the tokens that no entry holds yet and, where groups overlap, of the last one's.
        series, waiting = (2, plan.ratio) if plan.indexed else (1, 0)
        waiting = 2 * (context % plan.ratio * series + (waiting if context >= plan.ratio else 0))
        entries = -(-(context // plan.ratio) // COMPRESSED_STEP) * COMPRESSED_STEP
        rows += entries * args.head_dim
        open_groups += waiting * args.head_dim
        if plan.indexed:
            keys += entries * args.index_head_dim
            open_groups += waiting * args.index_head_dim
    window = len(args.layers) * min(args.sliding_window - 1, context) * args.head_dim
    return {
        "sliding window": window * element,
        "compressed rows": rows * element,
        "indexer keys": keys * element,
        "open groups": open_groups * element,
    }


_KINDS = {
    "standard": _standard,
    "hybrid_gdn": _hybrid_gdn,
    "rotating": _rotating,
    "compressed": _compressed,
}


def _layers(text: ConfigFields) -> int:
    return text.integer("num_hidden_layers", low=1, high=MAX_LAYERS)


def _heads(text: ConfigFields) -> tuple[int, int]:
    """Key-value heads and their width."""
    query_heads = text.integer("num_attention_heads", low=1, high=MAX_WIDTH)
    hidden = text.integer("hidden_size", low=1, high=MAX_WIDTH)
    heads = text.integer("num_key_value_heads", low=1, high=MAX_WIDTH, default=query_heads)
    default = max(1, hidden // query_heads)
    return heads, text.integer("head_dim", low=1, high=MAX_WIDTH, default=default)


def _token_bytes(text: ConfigFields, element: int) -> int:
    heads, dim = _heads(text)
    return 2 * heads * dim * element


def _layer_types(text: ConfigFields, layers: int) -> tuple[str, ...]:
    declared = text.texts("layer_types", MAX_LAYERS)
    if declared is not None:
        if len(declared) < layers:
            raise text.error("layer_types", f"names {len(declared)} of {layers} layers")
        return declared[:layers]
    # mlx-lm's defaults: Gemma repeats a pattern, gpt_oss alternates.
    pattern = text.integer("sliding_window_pattern", low=1, high=MAX_LAYERS, default=2)
    return tuple(
        "full_attention" if (layer + 1) % pattern == 0 else "sliding_attention" for layer in range(layers)
    )


def _stepped(context: int) -> int:
    return -(-context // KV_STEP) * KV_STEP
