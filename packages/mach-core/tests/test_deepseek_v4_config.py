import pytest

from mach.errors import ConfigError
from mach.io.deepseek_v4_config import DeepseekV4Config, LayerPlan
from mach.io.deepseek_v4_rope import Rope

SLIDING, SPARSE, HEAVY = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
YARN = {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 16,
    "original_max_position_embeddings": 65536,
    "type": "yarn",
}
# The fields of DeepSeek-V4-Flash as published, shortened to five layers.
FLASH = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "compress_ratios": [0, 0, 4, 128, 4, 0],
    "compress_rope_theta": 160000,
    "expert_dtype": "fp4",
    "hc_eps": 1e-06,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "head_dim": 512,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "index_head_dim": 128,
    "index_n_heads": 64,
    "index_topk": 512,
    "initializer_range": 0.02,
    "max_position_embeddings": 1048576,
    "model_type": "deepseek_v4",
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts_per_tok": 6,
    "num_hash_layers": 3,
    "num_hidden_layers": 5,
    "num_key_value_heads": 1,
    "num_nextn_predict_layers": 1,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "q_lora_rank": 1024,
    "qk_rope_head_dim": 64,
    "quantization_config": {"fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]},
    "rms_norm_eps": 1e-06,
    "rope_scaling": YARN,
    "rope_theta": 10000,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "sliding_window": 128,
    "swiglu_limit": 10.0,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "use_cache": True,
    "vocab_size": 129280,
}
TRANSFORMERS = {  # the same, as transformers 5 saves it
    name: value
    for name, value in FLASH.items()
    if name not in ("compress_ratios", "num_hash_layers", "rope_scaling", "topk_method")
} | {
    "compress_rates": {SPARSE: 4, HEAVY: 128},
    "layer_types": [SLIDING, SLIDING, SPARSE, HEAVY, SPARSE],
    "mlp_layer_types": ["hash_moe"] * 3 + ["moe"] * 2,
    "partial_rotary_factor": 0.125,
    "rope_parameters": {
        "main": {"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.125},
        "compress": YARN
        | {
            "rope_type": "yarn",
            "rope_theta": 160000,
            "partial_rotary_factor": 0.125,
            "attention_factor": 1.0,
        },
    },
}


def test_the_published_configuration_is_understood() -> None:
    args = DeepseekV4Config.from_dict(FLASH)
    assert args.layers == (
        LayerPlan(0, False, True),
        LayerPlan(0, False, True),
        LayerPlan(4, True, True),
        LayerPlan(128, False, False),
        LayerPlan(4, True, False),
    )
    assert (args.rope_dim, args.head_dim, args.experts, args.top_k) == (64, 512, 256, 6)
    assert args.main_rope == Rope(10000.0)
    assert args.compress_rope == Rope(160000.0, 16.0, 65536, 32.0, 1.0, 1.0)
    assert (args.mtp_layers, args.tied, args.routed_scaling) == (1, False, 1.5)


def test_transformers_spelling_means_the_same() -> None:
    assert DeepseekV4Config.from_dict(TRANSFORMERS) == DeepseekV4Config.from_dict(FLASH)


def test_fields_that_are_left_out_have_transformers_defaults() -> None:
    least = (
        "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim",
        "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "compress_ratios",
    )  # fmt: skip
    found = DeepseekV4Config.from_dict({name: FLASH[name] for name in least})
    assert found == DeepseekV4Config.from_dict(FLASH)._replace(compress_rope=Rope(160000.0), mtp_layers=0)


def test_rates_may_be_others_where_they_are_spelled_out() -> None:
    for changes in (
        {"compress_rates": {SPARSE: 2, HEAVY: 8}},
        {"compress_rate_csa": 2, "compress_rate_hca": 8},
    ):
        layers = DeepseekV4Config.from_dict(FLASH | changes).layers
        assert [plan.ratio for plan in layers] == [0, 0, 2, 8, 2]
        assert [plan.indexed for plan in layers] == [False, False, True, False, True]
        layers = DeepseekV4Config.from_dict(TRANSFORMERS | changes).layers
        assert [plan.ratio for plan in layers] == [0, 0, 2, 8, 2]


def test_the_older_spelling_of_the_compressed_layers_rope_is_obeyed() -> None:
    changes = {
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.125},
        "compress_rope_parameters": YARN | {"rope_theta": 160000.0, "rope_type": "yarn"},
    }
    assert DeepseekV4Config.from_dict(FLASH | changes) == DeepseekV4Config.from_dict(FLASH)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 2}, "num_key_value_heads must be 1"),
        ({"n_shared_experts": 2}, "n_shared_experts must be 1"),
        ({"n_shared_experts": 0}, "n_shared_experts must be 1"),
        ({"attention_bias": True}, "attention_bias must be false"),
        ({"mlp_bias": True}, "mlp_bias must be false"),
        ({"rope_interleave": False}, "rope_interleave must be true"),
        ({"norm_topk_prob": False}, "norm_topk_prob must be true"),
        ({"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"topk_method": "greedy"}, "topk_method is 'greedy'"),
        ({"intermediate_size": 18432}, "intermediate_size and moe_intermediate_size differ"),
        ({"num_local_experts": 128}, "num_local_experts and n_routed_experts differ"),
        ({"n_group": 8}, "n_group must be 1 or null"),
        ({"hc_mult": None}, "hc_mult is null"),
        ({"routed_scaling_factor": 2}, "routed_scaling_factor is an integer"),
        ({"routed_scaling_factor": "1.5"}, "routed_scaling_factor is a JSON string"),
        ({"routed_scaling_factor": float("inf")}, "routed_scaling_factor is outside"),
        ({"routed_scaling_factor": float("nan")}, "routed_scaling_factor is outside"),
        ({"swiglu_limit": 0.0}, "swiglu_limit is outside"),
        ({"rope_theta": 10**400}, "rope_theta is outside"),
        ({"hc_sinkhorn_iters": 0}, "hc_sinkhorn_iters is 0"),
        ({"hc_mult": 10**6}, "hc_mult is 1000000"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"index_topk": 0}, "index_topk is 0"),
        ({"num_experts_per_tok": 257}, "num_experts_per_tok is 257"),
        ({"o_groups": 7}, "o_groups is 7, which does not divide"),
        ({"compress_ratios": None}, "compress_ratios is missing"),
        ({"compress_ratios": [0, 4]}, "compress_ratios has 2 items for 5 layers"),
        ({"compress_ratios": [0, 4, 8, 4, 4]}, "compress_ratios holds 8"),
        ({"compress_ratios": [0, 4, 128, 4, 0.5]}, "compress_ratios must hold integers"),
        ({"layer_types": [SLIDING]}, "layer_types has 1 items for 5 layers"),
        ({"layer_types": ["full_attention"] * 5}, "layer_types holds 'full_attention'"),
        ({"mlp_layer_types": ["moe"]}, "mlp_layer_types has 1 items"),
        ({"mlp_layer_types": ["dense"] * 5}, "mlp_layer_types must hold"),
        ({"compress_rates": {"other": 4}}, "compress_rates.other is no kind"),
        ({"compress_rates": {SPARSE: 0}}, "compress_rates.compressed_sparse_attention is 0"),
        ({"qk_rope_head_dim": 63}, "qk_rope_head_dim makes 63 rotated features"),
        ({"qk_rope_head_dim": 256}, "qk_rope_head_dim makes 256 rotated features"),
        ({"partial_rotary_factor": 0.25}, "qk_rope_head_dim is 64, but partial_rotary_factor makes it 128"),
        ({"qk_nope_head_dim": 100}, "qk_nope_head_dim is 100, but head_dim leaves 448"),
        ({"rope_scaling": YARN | {"type": "linear"}}, "rope_type is 'linear'"),
        ({"rope_scaling": YARN | {"low_freq_factor": 1}}, "rope_scaling.low_freq_factor is no parameter"),
        ({"rope_scaling": YARN | {"truncate": False}}, "rope_scaling.truncate must be true"),
        ({"rope_scaling": YARN | {"factor": 0.5}}, "rope_scaling.factor is outside"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": YARN | {"partial_rotary_factor": 0.5}}, "makes 256 rotated features, not 64"),
        ({"rope_parameters": {"main": {}, "compress": None}}, "rope_parameters.compress is null"),
        ({"rope_parameters": {"main": {}, "compress": YARN}}, "compress.attention_factor is missing"),
        ({"rope_parameters": {"main": 1, "compress": {}}}, "rope_parameters.main is a JSON number"),
    ],
)
def test_what_the_model_cannot_honour_is_refused_with_the_fields_name(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        DeepseekV4Config.from_dict(FLASH | changes)


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "num_attention_heads", "head_dim"])
def test_sizes_have_no_default(name) -> None:
    with pytest.raises(ConfigError, match=f"{name} is missing"):
        DeepseekV4Config.from_dict({key: value for key, value in FLASH.items() if key != name})
