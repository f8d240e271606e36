"""Owns the table of golden cases: a tiny configuration per family and spelling, and the prompts to run.

It knows configurations only: which tensors they ask for is `golden_tensors`' business, and what a reference
makes of them `make_golden`'s. Spellings are those of the published checkpoints, or (the cases named
`..._resaved`) those that transformers 5 writes when it saves a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CHUNK = 24
"""Prompt tokens per forward pass in the tests; prompts are chosen to cross it."""

WINDOW = 16
VOCABULARY = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenCase:
    """One tiny checkpoint and what is asked of it.

    Attributes:
        name: of the case and of its file of golden data.
        family: the `model_type`.
        config: config.json's content.
        prompts: (length, step) per prompt: logits are stored at every `step`-th position, and at the last.
        spelling: how routed experts are stored, see `golden_tensors`.
        storage: safetensors dtype of ordinary weights, `BF16` or `F32`.
        greedy: tokens of the greedy continuation of every prompt.
        extra: names of tensors besides, which no language model loads.
    """

    name: str
    family: str
    config: dict[str, Any]
    prompts: tuple[tuple[int, int], ...] = ((5, 1), (40, 1), (75, 3))
    spelling: str = "published"
    storage: str = "BF16"
    greedy: int = 8
    extra: tuple[str, ...] = ()


def tokens_of(case: GoldenCase, length: int) -> list[int]:
    """The prompt of that length: every token of the vocabulary may occur, and neighbours differ."""
    vocabulary = case.config.get("text_config", case.config)["vocab_size"]
    return [(7 + 31 * i + 5 * (i * i % 11) + length) % vocabulary for i in range(length)]


def _qwen3_moe(**changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "decoder_sparse_step": 1,
        "eos_token_id": 1,
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 48,
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "max_position_embeddings": 512,
        "max_window_layers": 3,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "num_attention_heads": 4,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "output_router_logits": False,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": VOCABULARY,
    } | changes


def _without(config: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def _qwen3_5_moe(outer: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    text = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_output_gate": True,
        "dtype": "bfloat16",
        "eos_token_id": 1,
        "full_attention_interval": 4,
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 48,
        "initializer_range": 0.02,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"] + ["linear_attention"],
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_value_head_dim": 16,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": 512,
        "mlp_only_layers": [],
        "model_type": "qwen3_5_moe_text",
        "moe_intermediate_size": 32,
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "num_attention_heads": 4,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 5,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "router_aux_loss_coef": 0.001,
        "shared_expert_intermediate_size": 24,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": VOCABULARY,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [2, 1, 1],
            "rope_type": "default",
            "rope_theta": 10000000,
            "partial_rotary_factor": 0.25,
        },
    } | changes
    text = {name: value for name, value in text.items() if value is not ...}
    return {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "image_token_id": 248056,
        "model_type": "qwen3_5_moe",
        "text_config": text,
        "tie_word_embeddings": text["tie_word_embeddings"],
        "video_token_id": 248057,
        "vision_config": {"depth": 1, "hidden_size": 16, "num_heads": 2},
        "vision_end_token_id": 248054,
        "vision_start_token_id": 248053,
    } | (outer or {})


def _gpt_oss(**changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": 1,
        "experts_per_token": 3,
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initial_context_length": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 64,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "max_position_embeddings": 131072,
        "model_type": "gpt_oss",
        "num_attention_heads": 4,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 8,
        "output_router_logits": False,
        "pad_token_id": 2,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": WINDOW,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": VOCABULARY,
    } | changes


def _gemma4(outer: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    text = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attention_k_eq_v": True,
        "bos_token_id": 2,
        "dtype": "bfloat16",
        "enable_moe_block": True,
        "eos_token_id": 1,
        "final_logit_softcapping": 30.0,
        "global_head_dim": 64,
        "head_dim": 32,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 48,
        "hidden_size_per_layer_input": 0,
        "initializer_range": 0.02,
        "intermediate_size": 64,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        "max_position_embeddings": 512,
        "model_type": "gemma4_text",
        "moe_intermediate_size": 32,
        "num_attention_heads": 4,
        "num_experts": 8,
        "num_global_key_value_heads": 1,
        "num_hidden_layers": 6,
        "num_key_value_heads": 2,
        "num_kv_shared_layers": 0,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "full_attention": {
                "partial_rotary_factor": 0.25,
                "rope_theta": 1000000.0,
                "rope_type": "proportional",
            },
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "sliding_window": WINDOW,
        "tie_word_embeddings": True,
        "top_k_experts": 3,
        "use_bidirectional_attention": "vision",
        "use_cache": True,
        "use_double_wide_mlp": False,
        "vocab_size": VOCABULARY,
        "vocab_size_per_layer_input": VOCABULARY,
    } | changes
    text = {name: value for name, value in text.items() if value is not ...}
    return {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "audio_config": None,
        "dtype": "bfloat16",
        "eos_token_id": [1, 106],
        "image_token_id": 258880,
        "model_type": "gemma4",
        "text_config": text,
        "tie_word_embeddings": text["tie_word_embeddings"],
        "video_token_id": 258884,
        "vision_config": None,
    } | (outer or {})


def _deepseek_v4(**changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["DeepseekV4ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "compress_ratios": [0, 0, 4, 128, 4, 0],
        "compress_rope_theta": 160000,
        "eos_token_id": 1,
        "hc_eps": 1e-06,
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 64,
        "index_head_dim": 16,
        "index_n_heads": 8,
        "index_topk": 12,
        "initializer_range": 0.02,
        "max_position_embeddings": 4096,
        "model_type": "deepseek_v4",
        "moe_intermediate_size": 32,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 4,
        "num_experts_per_tok": 3,
        "num_hash_layers": 2,
        "num_hidden_layers": 5,
        "num_key_value_heads": 1,
        "num_nextn_predict_layers": 1,
        "o_groups": 2,
        "o_lora_rank": 16,
        "q_lora_rank": 32,
        "qk_rope_head_dim": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 16,
            "original_max_position_embeddings": 256,
            "type": "yarn",
        },
        "rope_theta": 10000,
        "routed_scaling_factor": 1.5,
        "scoring_func": "sqrtsoftplus",
        "sliding_window": WINDOW,
        "swiglu_limit": 1.5,
        "tie_word_embeddings": False,
        "topk_method": "noaux_tc",
        "use_cache": True,
        "vocab_size": VOCABULARY,
    } | changes


CASES: dict[str, GoldenCase] = {
    case.name: case
    for case in (
        GoldenCase(name="qwen3_moe", family="qwen3_moe", config=_qwen3_moe()),
        # Dense layers by list and by step, raw routing weights, tied ends, no head_dim: hidden / heads.
        GoldenCase(
            name="qwen3_moe_resaved",
            family="qwen3_moe",
            config=_without(
                _qwen3_moe(
                    decoder_sparse_step=2,
                    dtype="float32",
                    mlp_only_layers=[1],
                    norm_topk_prob=False,
                    num_hidden_layers=4,
                    num_local_experts=8,
                    rope_parameters={"rope_theta": 5000.0, "rope_type": "default"},
                    tie_word_embeddings=True,
                ),
                *("head_dim", "num_experts", "rope_scaling", "rope_theta", "torch_dtype"),
            ),
            storage="F32",
        ),
        # As Qwen's model cards tell users to ask for long contexts.
        GoldenCase(
            name="qwen3_moe_yarn",
            family="qwen3_moe",
            config=_qwen3_moe(rope_scaling=_YARN, num_hidden_layers=2),
        ),
        GoldenCase(
            name="qwen3_5_moe",
            family="qwen3_5_moe",
            config=_qwen3_5_moe(),
            extra=("model.visual.patch_embed.proj.weight", "mtp.norm.weight"),
        ),
        # As its model card tells users to ask for long contexts, and with what else YaRN may be told.
        GoldenCase(
            name="qwen3_5_moe_yarn",
            family="qwen3_5_moe",
            config=_qwen3_5_moe(
                layer_types=["linear_attention", "full_attention"],
                num_hidden_layers=2,
                rope_parameters={
                    "attention_factor": 0.9,
                    "factor": 4.0,
                    "mrope_interleaved": True,
                    "mrope_section": [4, 2, 2],
                    "original_max_position_embeddings": 128,
                    "partial_rotary_factor": 0.5,
                    "rope_theta": 10000,
                    "rope_type": "yarn",
                    "truncate": False,
                },
            ),
            prompts=((40, 1),),
        ),
        # Layer types that no interval gives, tied ends, biases, one key head to three value heads, F32.
        GoldenCase(
            name="qwen3_5_moe_resaved",
            family="qwen3_5_moe",
            config=_qwen3_5_moe(
                attention_bias=True,
                dtype="float32",
                full_attention_interval=...,
                layer_types=["full_attention", "linear_attention", "linear_attention", "full_attention"],
                linear_key_head_dim=8,
                linear_num_key_heads=1,
                linear_num_value_heads=3,
                num_hidden_layers=4,
                rope_parameters={
                    "partial_rotary_factor": 0.5,
                    "rope_theta": 20000.0,
                    "rope_type": "default",
                    "mrope_section": [4, 2, 2],
                },
                tie_word_embeddings=True,
            ),
            storage="F32",
        ),
        GoldenCase(name="gpt_oss", family="gpt_oss", config=_gpt_oss(), spelling="mxfp4"),
        # bfloat16 experts, YaRN with a rounded ramp, layer types out of step, as transformers 5 saves them.
        GoldenCase(
            name="gpt_oss_resaved",
            family="gpt_oss",
            config=_without(
                _gpt_oss(
                    layer_types=["full_attention", "sliding_attention", "sliding_attention"],
                    num_hidden_layers=3,
                    rope_parameters={
                        "beta_fast": 32.0,
                        "beta_slow": 1.0,
                        "factor": 8.0,
                        "original_max_position_embeddings": 64,
                        "rope_theta": 10000.0,
                        "rope_type": "yarn",
                        "truncate": True,
                    },
                    swiglu_alpha=1.702,
                ),
                *("experts_per_token", "initial_context_length", "quantization_config"),
                *("rope_scaling", "rope_theta"),
            ),
            spelling="transposed",
        ),
        # Everything that a configuration may leave out.
        GoldenCase(
            name="gpt_oss_terse",
            family="gpt_oss",
            config=_without(
                _gpt_oss(num_hidden_layers=2),
                *("attention_bias", "experts_per_token", "initial_context_length", "layer_types"),
                *("quantization_config", "rope_scaling", "rope_theta", "swiglu_limit"),
            ),
            spelling="transposed",
            prompts=((40, 1),),
        ),
        GoldenCase(name="gemma4", family="gemma4", config=_gemma4()),
        # What the small members of the family have, beside experts: inputs per layer, shared keys and values.
        GoldenCase(
            name="gemma4_shared",
            family="gemma4",
            config=_gemma4(
                outer={"vocab_size": VOCABULARY},
                attention_k_eq_v=False,
                final_logit_softcapping=None,
                hidden_size_per_layer_input=8,
                layer_types=["sliding_attention", "full_attention"] * 3,
                num_kv_shared_layers=2,
                tie_word_embeddings=False,
                use_double_wide_mlp=True,
                vocab_size_per_layer_input=VOCABULARY,
            ),
        ),
        # Sizes of full-attention layers in per_layer_config; fields left out that have a default.
        GoldenCase(
            name="gemma4_resaved",
            family="gemma4",
            config=_gemma4(
                dtype="float32",
                num_hidden_layers=3,
                layer_types=["sliding_attention", "full_attention", "full_attention"],
                per_layer_config={
                    "1": {"head_dim": 64, "num_key_value_heads": 1},
                    "2": {"head_dim": 64, "num_key_value_heads": 1},
                },
                **dict.fromkeys(
                    (
                        "attention_bias",
                        "final_logit_softcapping",
                        "global_head_dim",
                        "num_global_key_value_heads",
                        "num_kv_shared_layers",
                        "rope_parameters",
                        "use_bidirectional_attention",
                        "use_double_wide_mlp",
                    ),
                    ...,
                ),
            ),
            storage="F32",
        ),
        GoldenCase(
            name="deepseek_v4",
            family="deepseek_v4",
            config=_deepseek_v4(),
            prompts=((5, 1), (40, 1), (150, 5), (280, 7)),
            extra=("mtp.0.norm.weight",),
        ),
        # As transformers 5 writes a configuration: layer and rope types by name.
        GoldenCase(
            name="deepseek_v4_resaved",
            family="deepseek_v4",
            config=_without(
                _deepseek_v4(
                    compress_rates={"compressed_sparse_attention": 4, "heavily_compressed_attention": 32},
                    layer_types=[
                        "heavily_compressed_attention",
                        "compressed_sparse_attention",
                        "sliding_attention",
                    ],
                    mlp_layer_types=["moe", "hash_moe", "moe"],
                    num_hidden_layers=3,
                    hc_mult=2,
                    partial_rotary_factor=0.5,
                    rope_parameters={
                        "compress": {
                            "partial_rotary_factor": 0.5,
                            "rope_theta": 40000.0,
                            "rope_type": "default",
                        },
                        "main": {"partial_rotary_factor": 0.5, "rope_theta": 5000.0, "rope_type": "default"},
                    },
                    compress_rope_theta=40000.0,
                    rope_theta=5000.0,
                ),
                *("compress_ratios", "num_hash_layers", "qk_rope_head_dim", "rope_scaling", "topk_method"),
            ),
            prompts=((40, 1), (100, 3)),
            storage="F32",
        ),
    )
}
