"""Owns the published names, shapes and kinds of every tensor that a golden case's checkpoint holds.

Written from the published checkpoints' names and the reference's modules, apart from the engine's own tables,
so that a name that the engine has wrong shows. Values are `golden_checkpoint`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from golden_cases import GoldenCase


class GoldenTensor(NamedTuple):
    """One tensor of a checkpoint.

    Attributes:
        name: as published.
        shape: extents.
        kind: how its values are drawn, a key of `golden_checkpoint.KINDS`.
        scale: factor on them.
        dtype: safetensors dtype, or "" for the case's own.
    """

    name: str
    shape: tuple[int, ...]
    kind: str = "matrix"
    scale: float = 1.0
    dtype: str = ""


Tensors = Iterator[GoldenTensor]
T = GoldenTensor


def tensors_of(case: GoldenCase) -> Tensors:
    """Every tensor of the case's checkpoint, in a fixed order."""
    yield from _FAMILIES[case.family](case)
    for name in case.extra:
        yield T(name, (4, 4))


def _attention(
    block: str, hidden: int, queries: int, keys: int, out: int, bias: bool, values: bool
) -> Tensors:
    sizes = {"q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden)}
    sizes["o_proj"] = (hidden, out)
    for name, shape in sizes.items():
        if name != "v_proj" or values:
            yield T(f"{block}.{name}.weight", shape)
            if bias:
                yield T(f"{block}.{name}.bias", shape[:1], "bias")


def _dense(block: str, hidden: int, width: int) -> Tensors:
    yield T(f"{block}.gate_proj.weight", (width, hidden), scale=2.0)
    yield T(f"{block}.up_proj.weight", (width, hidden))
    yield T(f"{block}.down_proj.weight", (hidden, width))


def _qwen3_moe(case: GoldenCase) -> Tensors:
    c = case.config
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    head = c.get("head_dim", hidden // heads)
    experts = c.get("num_experts", c.get("num_local_experts"))
    yield T("model.embed_tokens.weight", (c["vocab_size"], hidden), "embedding")
    yield T("model.norm.weight", (hidden,), "norm")
    if not c["tie_word_embeddings"]:
        yield T("lm_head.weight", (c["vocab_size"], hidden), scale=3.0)
    for layer in range(c["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        keys = c["num_key_value_heads"] * head
        yield from _attention(f"{block}.self_attn", hidden, heads * head, keys, heads * head, False, True)
        yield T(f"{block}.self_attn.q_norm.weight", (head,), "norm", 1.5)
        yield T(f"{block}.self_attn.k_norm.weight", (head,), "norm", 1.5)
        yield T(f"{block}.input_layernorm.weight", (hidden,), "norm")
        yield T(f"{block}.post_attention_layernorm.weight", (hidden,), "norm")
        if layer in c["mlp_only_layers"] or (layer + 1) % c["decoder_sparse_step"]:
            yield from _dense(f"{block}.mlp", hidden, c["intermediate_size"])
            continue
        yield T(f"{block}.mlp.gate.weight", (experts, hidden), scale=2.0)
        for expert in range(experts):
            yield from _dense(f"{block}.mlp.experts.{expert}", hidden, c["moe_intermediate_size"])


def _qwen3_5_moe(case: GoldenCase) -> Tensors:
    c = case.config["text_config"]
    hidden, heads, head = c["hidden_size"], c["num_attention_heads"], c["head_dim"]
    experts, width = c["num_experts"], c["moe_intermediate_size"]
    root = "model.language_model"
    yield T(f"{root}.embed_tokens.weight", (c["vocab_size"], hidden), "embedding")
    yield T(f"{root}.norm.weight", (hidden,), "zero_norm")
    if not c["tie_word_embeddings"]:
        yield T("lm_head.weight", (c["vocab_size"], hidden), scale=3.0)
    for layer, kind in enumerate(c["layer_types"]):
        block = f"{root}.layers.{layer}"
        yield T(f"{block}.input_layernorm.weight", (hidden,), "zero_norm")
        yield T(f"{block}.post_attention_layernorm.weight", (hidden,), "zero_norm")
        if kind == "full_attention":
            queries, keys = heads * head, c["num_key_value_heads"] * head
            attention = f"{block}.self_attn"
            yield from _attention(attention, hidden, 2 * queries, keys, queries, c["attention_bias"], True)
            yield T(f"{attention}.q_norm.weight", (head,), "zero_norm")
            yield T(f"{attention}.k_norm.weight", (head,), "zero_norm")
        else:
            yield from _delta_net(f"{block}.linear_attn", c)
        yield T(f"{block}.mlp.gate.weight", (experts, hidden), scale=2.0)
        yield T(f"{block}.mlp.experts.gate_up_proj", (experts, 2 * width, hidden), scale=1.5)
        yield T(f"{block}.mlp.experts.down_proj", (experts, hidden, width))
        yield from _dense(f"{block}.mlp.shared_expert", hidden, c["shared_expert_intermediate_size"])
        yield T(f"{block}.mlp.shared_expert_gate.weight", (1, hidden))


def _delta_net(block: str, c: dict[str, Any]) -> Tensors:
    hidden, value_heads = c["hidden_size"], c["linear_num_value_heads"]
    values = value_heads * c["linear_value_head_dim"]
    mixed = 2 * c["linear_num_key_heads"] * c["linear_key_head_dim"] + values
    yield T(f"{block}.conv1d.weight", (mixed, 1, c["linear_conv_kernel_dim"]), scale=2.0)
    yield T(f"{block}.in_proj_qkv.weight", (mixed, hidden))
    yield T(f"{block}.in_proj_z.weight", (values, hidden))
    yield T(f"{block}.in_proj_b.weight", (value_heads, hidden))
    yield T(f"{block}.in_proj_a.weight", (value_heads, hidden))
    yield T(f"{block}.dt_bias", (value_heads,), "dt_bias")
    yield T(f"{block}.A_log", (value_heads,), "a_log", dtype="F32")
    yield T(f"{block}.norm.weight", (c["linear_value_head_dim"],), "norm", dtype="F32")
    yield T(f"{block}.out_proj.weight", (hidden, values))


def _gpt_oss(case: GoldenCase) -> Tensors:
    c = case.config
    hidden, heads, head = c["hidden_size"], c["num_attention_heads"], c["head_dim"]
    experts, width = c["num_local_experts"], c["intermediate_size"]
    yield T("model.embed_tokens.weight", (c["vocab_size"], hidden), "embedding")
    yield T("model.norm.weight", (hidden,), "norm")
    yield T("lm_head.weight", (c["vocab_size"], hidden), scale=3.0)
    for layer in range(c["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        queries, keys = heads * head, c["num_key_value_heads"] * head
        yield from _attention(f"{block}.self_attn", hidden, queries, keys, queries, True, True)
        yield T(f"{block}.self_attn.sinks", (heads,), "bias", 4.0)
        yield T(f"{block}.input_layernorm.weight", (hidden,), "norm")
        yield T(f"{block}.post_attention_layernorm.weight", (hidden,), "norm")
        yield T(f"{block}.mlp.router.weight", (experts, hidden), scale=2.0)
        yield T(f"{block}.mlp.router.bias", (experts,), "bias", 2.0)
        inner = f"{block}.mlp.experts"
        if case.spelling == "mxfp4":
            for name, rows, columns in (("gate_up_proj", 2 * width, hidden), ("down_proj", hidden, width)):
                blocks = columns // 32
                yield T(f"{inner}.{name}_blocks", (experts, rows, blocks, 16), "mxfp4_blocks", dtype="U8")
                yield T(f"{inner}.{name}_scales", (experts, rows, blocks), "mxfp4_scales", dtype="U8")
        else:
            yield T(f"{inner}.gate_up_proj", (experts, hidden, 2 * width), "transposed")
            yield T(f"{inner}.down_proj", (experts, width, hidden), "transposed")
        # Some of them beyond the limit at which the activation clamps.
        yield T(f"{inner}.gate_up_proj_bias", (experts, 2 * width), "far_bias", 10.0)
        yield T(f"{inner}.down_proj_bias", (experts, hidden), "bias")


def _gemma4(case: GoldenCase) -> Tensors:
    c = case.config["text_config"]
    hidden, heads, layers = c["hidden_size"], c["num_attention_heads"], c["num_hidden_layers"]
    experts, width, gated = c["num_experts"], c["moe_intermediate_size"], c["hidden_size_per_layer_input"]
    owners = layers - c.get("num_kv_shared_layers", 0)
    root = "model.language_model"
    # Embeddings are multiplied by the root of their width.
    yield T(f"{root}.embed_tokens.weight", (c["vocab_size"], hidden), "embedding", hidden**-0.5)
    yield T(f"{root}.norm.weight", (hidden,), "norm", 3.0)
    if not c["tie_word_embeddings"]:
        yield T("lm_head.weight", (c["vocab_size"], hidden))
    if gated:
        packed = (c["vocab_size_per_layer_input"], layers * gated)
        yield T(f"{root}.embed_tokens_per_layer.weight", packed, "embedding", gated**-0.5)
        yield T(f"{root}.per_layer_model_projection.weight", (layers * gated, hidden))
        yield T(f"{root}.per_layer_projection_norm.weight", (gated,), "norm")
    for layer, kind in enumerate(c["layer_types"]):
        block, full = f"{root}.layers.{layer}", kind == "full_attention"
        same = full and c["attention_k_eq_v"]
        head, key_heads = c["head_dim"], c["num_key_value_heads"]
        if "per_layer_config" in c:
            head = c["per_layer_config"].get(str(layer), c)["head_dim"]
            key_heads = c["per_layer_config"].get(str(layer), c)["num_key_value_heads"]
        elif full:
            head = c["global_head_dim"]
            key_heads = c["num_global_key_value_heads"] if same else key_heads
        keys = key_heads * head
        for tensor in _attention(
            f"{block}.self_attn", hidden, heads * head, keys, heads * head, False, not same
        ):
            if layer < owners or "k_proj" not in tensor.name and "v_proj" not in tensor.name:
                yield tensor
        # Attention is not scaled: the norms' weights keep the scores moderate.
        yield T(f"{block}.self_attn.q_norm.weight", (head,), "norm", 0.3)
        if layer < owners:
            yield T(f"{block}.self_attn.k_norm.weight", (head,), "norm")
        double = layer >= owners and c["use_double_wide_mlp"]
        yield from _dense(f"{block}.mlp", hidden, c["intermediate_size"] * (2 if double else 1))
        for norm in _GEMMA4_NORMS:
            yield T(f"{block}.{norm}.weight", (hidden,), "norm")
        yield T(f"{block}.router.proj.weight", (experts, hidden), scale=8.0)
        yield T(f"{block}.router.scale", (hidden,), "norm")
        yield T(f"{block}.router.per_expert_scale", (experts,), "norm")
        yield T(f"{block}.experts.gate_up_proj", (experts, 2 * width, hidden), scale=1.5)
        yield T(f"{block}.experts.down_proj", (experts, hidden, width))
        if gated:
            yield T(f"{block}.per_layer_input_gate.weight", (gated, hidden))
            yield T(f"{block}.per_layer_projection.weight", (hidden, gated))
            yield T(f"{block}.post_per_layer_input_norm.weight", (hidden,), "norm")
        yield T(f"{block}.layer_scalar", (1,), "norm", 0.8)


_GEMMA4_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
    "post_feedforward_layernorm_1",
    "post_feedforward_layernorm_2",
    "pre_feedforward_layernorm_2",
)


def _deepseek_v4(case: GoldenCase) -> Tensors:
    c = case.config
    hidden, streams, width = c["hidden_size"], c["hc_mult"], c["moe_intermediate_size"]
    layers = c["num_hidden_layers"]
    yield T("embed.weight", (c["vocab_size"], hidden), "embedding")
    yield T("norm.weight", (hidden,), "norm")
    yield T("head.weight", (c["vocab_size"], hidden), scale=3.0)
    yield T("hc_head_fn", (streams, streams * hidden), dtype="F32")
    yield T("hc_head_base", (streams,), "bias", dtype="F32")
    yield T("hc_head_scale", (1,), "norm", dtype="F32")
    if "layer_types" in c:
        names = {"sliding_attention": 0}
        ratios = [names[kind] if kind in names else c["compress_rates"][kind] for kind in c["layer_types"]]
        overlapping = [kind == "compressed_sparse_attention" for kind in c["layer_types"]]
        hashed = [kind == "hash_moe" for kind in c["mlp_layer_types"]]
    else:
        ratios = c["compress_ratios"]
        overlapping = [ratio == 4 for ratio in ratios]
        hashed = [layer < c["num_hash_layers"] for layer in range(layers)]
    for layer in range(layers):
        block = f"layers.{layer}"
        yield from _v4_attention(f"{block}.attn", c, ratios[layer], overlapping[layer])
        yield T(f"{block}.attn_norm.weight", (hidden,), "norm")
        yield T(f"{block}.ffn_norm.weight", (hidden,), "norm")
        mixes = (2 + streams) * streams
        for part in ("attn", "ffn"):
            yield T(f"{block}.hc_{part}_fn", (mixes, streams * hidden), scale=2.0, dtype="F32")
            yield T(f"{block}.hc_{part}_base", (mixes,), "bias", 3.0, dtype="F32")
            yield T(f"{block}.hc_{part}_scale", (3,), "norm", dtype="F32")
        yield T(f"{block}.ffn.gate.weight", (c["n_routed_experts"], hidden), scale=2.0)
        if hashed[layer]:
            table = (c["vocab_size"], c["num_experts_per_tok"])
            yield T(f"{block}.ffn.gate.tid2eid", table, "expert_table", c["n_routed_experts"], "I64")
        else:
            yield T(f"{block}.ffn.gate.bias", (c["n_routed_experts"],), "bias", dtype="F32")
        experts = [f"experts.{expert}" for expert in range(c["n_routed_experts"])]
        for path in (*experts, "shared_experts"):
            yield T(f"{block}.ffn.{path}.w1.weight", (width, hidden), scale=2.0)
            yield T(f"{block}.ffn.{path}.w2.weight", (hidden, width))
            yield T(f"{block}.ffn.{path}.w3.weight", (width, hidden), scale=1.5)


def _v4_attention(block: str, c: dict[str, Any], ratio: int, overlapping: bool) -> Tensors:
    hidden, head, rank = c["hidden_size"], c["head_dim"], c["q_lora_rank"]
    queries = c["num_attention_heads"] * head
    yield T(f"{block}.wq_a.weight", (rank, hidden))
    yield T(f"{block}.q_norm.weight", (rank,), "norm")
    yield T(f"{block}.wq_b.weight", (queries, rank))
    yield T(f"{block}.wkv.weight", (head, hidden))
    yield T(f"{block}.kv_norm.weight", (head,), "norm", 1.5)
    yield T(f"{block}.wo_a.weight", (c["o_groups"] * c["o_lora_rank"], queries // c["o_groups"]))
    yield T(f"{block}.wo_b.weight", (hidden, c["o_groups"] * c["o_lora_rank"]))
    yield T(f"{block}.attn_sink", (c["num_attention_heads"],), "bias", 4.0, dtype="F32")
    if ratio:
        yield from _compressor(f"{block}.compressor", hidden, head, ratio, overlapping)
    if overlapping:
        heads, index = c["index_n_heads"], c["index_head_dim"]
        yield T(f"{block}.indexer.wq_b.weight", (heads * index, rank))
        yield T(f"{block}.indexer.weights_proj.weight", (heads, hidden))
        yield from _compressor(f"{block}.indexer.compressor", hidden, index, ratio, True)


def _compressor(block: str, hidden: int, head: int, ratio: int, overlapping: bool) -> Tensors:
    wide = head * (2 if overlapping else 1)
    yield T(f"{block}.ape", (ratio, wide), "bias", 2.0, dtype="F32")
    yield T(f"{block}.wkv.weight", (wide, hidden))
    yield T(f"{block}.wgate.weight", (wide, hidden))
    yield T(f"{block}.norm.weight", (head,), "norm")


_FAMILIES: dict[str, Callable[[GoldenCase], Tensors]] = {
    "qwen3_moe": _qwen3_moe,
    "qwen3_5_moe": _qwen3_5_moe,
    "gpt_oss": _gpt_oss,
    "gemma4": _gemma4,
    "deepseek_v4": _deepseek_v4,
}
