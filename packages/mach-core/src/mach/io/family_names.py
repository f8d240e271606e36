"""Owns how each family names its tensors in published checkpoints: raw expert forms, and all other tensors.

One description per family, as data, which `arch_registry` puts into the adapters. Sources: the index files
and configurations of the reference targets (tests/key_lists says which), mlx-lm 0.32, transformers 5.23.

A template of an other tensor may hold `{layer}` and alternatives in brackets: `self_attn.[q|k]_proj.weight`.
Where it ends in `.weight` it also stands for what quantisation puts beside that weight.
"""

from __future__ import annotations

from mach.io.raw_form import FUSED, NUMBERED, SEPARATE, RawForm

QWEN3_MOE_RAW = (
    RawForm(
        layout="per_expert",
        blocks=("model.layers.{layer}.mlp.experts.{expert}",),
        projections=SEPARATE,
        scale=".weight_scale_inv",
        encodings=("plain", "fp8"),
    ),
    RawForm(  # as transformers 5 holds it
        layout="fused",
        blocks=("model.layers.{layer}.mlp.experts",),
        projections=FUSED,
        weight="",
        scale="_scale_inv",
        encodings=("plain", "fp8"),
    ),
)
QWEN3_MOE_OTHERS = (
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.norm.weight",
    "model.layers.{layer}.[input|post_attention]_layernorm.weight",
    "model.layers.{layer}.self_attn.[q|k|v|o]_proj.[weight|bias]",
    "model.layers.{layer}.self_attn.[q|k]_norm.weight",
    "model.layers.{layer}.mlp.gate.weight",
    "model.layers.{layer}.mlp.[gate|up|down]_proj.weight",
)

_QWEN3_5_LAYERS = (
    "model.language_model.layers.{layer}",
    "language_model.model.layers.{layer}",
    "model.layers.{layer}",
)
QWEN3_5_MOE_RAW = (
    RawForm(  # the FP8 releases
        layout="per_expert",
        blocks=tuple(f"{layer}.mlp.experts.{{expert}}" for layer in _QWEN3_5_LAYERS),
        projections=SEPARATE,
        scale=".weight_scale_inv",
        encodings=("plain", "fp8"),
    ),
    RawForm(
        layout="fused",
        blocks=tuple(f"{layer}.mlp.experts" for layer in _QWEN3_5_LAYERS),
        projections=FUSED,
        weight="",
        scale="_scale_inv",
        encodings=("plain", "fp8"),
    ),
)
_QWEN3_5_MODEL = "[model.language_model|language_model.model|model]"
QWEN3_5_MOE_OTHERS = (
    "[language_model.|]lm_head.weight",
    f"{_QWEN3_5_MODEL}.embed_tokens.weight",
    f"{_QWEN3_5_MODEL}.norm.weight",
    *(
        f"{_QWEN3_5_MODEL}.layers.{{layer}}.{name}"
        for name in (
            "[input|post_attention]_layernorm.weight",
            "self_attn.[q|k|v|o]_proj.[weight|bias]",
            "self_attn.[q|k]_norm.weight",
            "linear_attn.[A_log|dt_bias]",
            "linear_attn.conv1d.weight",
            "linear_attn.in_proj_[qkv|z|a|b].weight",
            "linear_attn.norm.weight",
            "linear_attn.out_proj.weight",
            "mlp.gate.weight",
            "mlp.shared_expert.[gate|up|down]_proj.weight",
            "mlp.shared_expert_gate.weight",
        )
    ),
)

_GPT_OSS_BLOCK = ("model.layers.{layer}.mlp.experts",)
GPT_OSS_RAW = (
    RawForm(  # as published
        layout="fused",
        blocks=_GPT_OSS_BLOCK,
        projections=FUSED,
        weight="_blocks",
        scale="_scales",
        bias="_bias",
        encodings=("fp4",),
        interleaving="rows",
    ),
    RawForm(  # as transformers saves it unpacked
        layout="fused",
        blocks=_GPT_OSS_BLOCK,
        projections=FUSED,
        weight="",
        bias="_bias",
        axes="in_out",
        interleaving="rows",
    ),
    RawForm(
        layout="per_expert",
        blocks=("model.layers.{layer}.mlp.experts.{expert}",),
        projections=SEPARATE,
        bias=".bias",
    ),
)
GPT_OSS_OTHERS = (
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.norm.weight",
    "model.layers.{layer}.[input|post_attention]_layernorm.weight",
    "model.layers.{layer}.self_attn.[q|k|v|o]_proj.[weight|bias]",
    "model.layers.{layer}.self_attn.sinks",
    "model.layers.{layer}.mlp.router.[weight|bias]",
)

GEMMA4_RAW = (
    RawForm(
        layout="fused",
        blocks=(
            "model.language_model.layers.{layer}.experts",
            "language_model.model.layers.{layer}.experts",
        ),
        projections=FUSED,
        weight="",
    ),
    RawForm(
        layout="per_expert",
        blocks=("model.language_model.layers.{layer}.experts.{expert}",),
        projections=SEPARATE,
    ),
)
_GEMMA4_MODEL = "[model.language_model|language_model.model]"
GEMMA4_OTHERS = (
    "[language_model.|]lm_head.weight",
    f"{_GEMMA4_MODEL}.embed_tokens.weight",
    f"{_GEMMA4_MODEL}.embed_tokens_per_layer.weight",
    f"{_GEMMA4_MODEL}.per_layer_model_projection.weight",
    f"{_GEMMA4_MODEL}.per_layer_projection_norm.weight",
    f"{_GEMMA4_MODEL}.norm.weight",
    *(
        f"{_GEMMA4_MODEL}.layers.{{layer}}.{name}"
        for name in (
            "[input|post_attention|pre_feedforward|post_feedforward]_layernorm.weight",
            "[pre_feedforward_layernorm_2|post_feedforward_layernorm_1|post_feedforward_layernorm_2].weight",
            "post_per_layer_input_norm.weight",
            "per_layer_[input_gate|projection].weight",
            "layer_scalar",
            "self_attn.[q|k|v|o]_proj.weight",
            "self_attn.[q|k]_norm.weight",
            "mlp.[gate|up|down]_proj.weight",
            "router.proj.weight",
            "router.[scale|per_expert_scale]",
        )
    ),
)

DEEPSEEK_V4_RAW = (
    RawForm(  # as published
        layout="per_expert",
        blocks=(
            "layers.{layer}.ffn.experts.{expert}",
            "model.layers.{layer}.ffn.experts.{expert}",
        ),
        projections=NUMBERED,
        scale=".scale",
        encodings=("plain", "fp8", "fp4"),
    ),
    RawForm(
        layout="per_expert",
        blocks=("model.layers.{layer}.mlp.experts.{expert}",),
        projections=SEPARATE,
        scale=".weight_scale_inv",
        encodings=("plain", "fp8", "fp4"),
    ),
    RawForm(  # as transformers 5 holds it
        layout="fused",
        blocks=("model.layers.{layer}.mlp.experts",),
        projections=FUSED,
        weight="",
        scale="_scale_inv",
        encodings=("plain", "fp8", "fp4"),
    ),
)
_DEEPSEEK_V4_COMPRESSOR = (
    "[ape|position_bias]",
    "[wkv|wgate|norm|kv_proj|gate_proj|kv_norm].weight",
)
DEEPSEEK_V4_OTHERS = (  # as published, below `model.` in MLX conversions, and as transformers 5 has them
    "[model.|][embed|norm|head].weight",
    "[model.embed_tokens|lm_head].weight",
    "[model.|]hc_head_[fn|base|scale]",
    "model.hc_head.[fn|base|scale|hc_fn|hc_base|hc_scale]",
    *(
        f"[model.|]layers.{{layer}}.{name}"
        for name in (
            "[attn|ffn]_norm.weight",
            "[input|post_attention]_layernorm.weight",
            "hc_[attn|ffn]_[fn|base|scale]",
            "[attn|ffn]_hc.[fn|base|scale]",
            "[attn.attn_sink|self_attn.sinks]",
            "attn.[wq_a|wq_b|wkv|wo_a|wo_b|q_norm|kv_norm].weight",
            "self_attn.[q_a_proj|q_a_norm|q_b_proj|kv_proj|kv_norm|o_a_proj|o_b_proj].weight",
            *(f"[attn|self_attn].compressor.{name}" for name in _DEEPSEEK_V4_COMPRESSOR),
            *(f"attn.indexer.compressor.{name}" for name in _DEEPSEEK_V4_COMPRESSOR),
            *(f"self_attn.compressor.indexer.{name}" for name in _DEEPSEEK_V4_COMPRESSOR),
            "attn.indexer.[wq_b|weights_proj].weight",
            "self_attn.compressor.indexer.[q_b_proj|scorer.weights_proj].weight",
            "[ffn|mlp].gate.[weight|bias|e_score_correction_bias|tid2eid]",
            "[ffn|mlp].shared_experts.[w1|w2|w3|gate_proj|up_proj|down_proj].weight",
        )
    ),
)
