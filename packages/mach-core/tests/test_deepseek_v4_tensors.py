import pytest

from mach.io.arch_registry import REGISTRY
from mach.io.config_file import ConfigFields
from mach.io.deepseek_v4_tensors import deepseek_v4_tensors, own_name


def test_own_names_are_left_alone(families) -> None:
    fields = ConfigFields(families["deepseek_v4"], "config.json")
    shape = REGISTRY["deepseek_v4"].moe_shape(fields)
    names = [name for name, _ in deepseek_v4_tensors(fields, fields, shape)]
    assert len(names) == len(set(names))
    assert [own_name(name) for name in names] == names


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize(
    ("published", "own"),
    [
        ("embed.weight", "model.embed_tokens.weight"),
        ("embed.scales", "model.embed_tokens.scales"),
        ("norm.weight", "model.norm.weight"),
        ("head.weight", "lm_head.weight"),
        ("hc_head_fn", "model.hc_head.hc_fn"),
        ("hc_head.base", "model.hc_head.hc_base"),
        ("hc_head.hc_scale", "model.hc_head.hc_scale"),
        ("layers.3.attn_norm.weight", "model.layers.3.input_layernorm.weight"),
        ("layers.3.ffn_norm.weight", "model.layers.3.post_attention_layernorm.weight"),
        ("layers.3.hc_attn_fn", "model.layers.3.attn_hc.fn"),
        ("layers.3.hc_ffn_scale", "model.layers.3.ffn_hc.scale"),
        ("layers.3.attn_hc.base", "model.layers.3.attn_hc.base"),
        ("layers.3.attn.wq_a.weight", "model.layers.3.self_attn.q_a_proj.weight"),
        ("layers.3.attn.wq_b.biases", "model.layers.3.self_attn.q_b_proj.biases"),
        ("layers.3.attn.wkv.weight", "model.layers.3.self_attn.kv_proj.weight"),
        ("layers.3.attn.kv_norm.weight", "model.layers.3.self_attn.kv_norm.weight"),
        ("layers.3.attn.q_norm.weight", "model.layers.3.self_attn.q_a_norm.weight"),
        ("layers.3.attn.attn_sink", "model.layers.3.self_attn.sinks"),
        ("layers.3.attn.compressor.ape", "model.layers.3.self_attn.compressor.position_bias"),
        ("layers.3.attn.compressor.norm.weight", "model.layers.3.self_attn.compressor.kv_norm.weight"),
        ("layers.3.attn.indexer.wq_b.weight", "model.layers.3.self_attn.compressor.indexer.q_b_proj.weight"),
        (
            "layers.3.attn.indexer.compressor.wgate.weight",
            "model.layers.3.self_attn.compressor.indexer.gate_proj.weight",
        ),
        (
            "layers.3.attn.indexer.weights_proj.weight",
            "model.layers.3.self_attn.compressor.indexer.scorer.weights_proj.weight",
        ),
        ("layers.3.ffn.gate.weight", "model.layers.3.mlp.gate.weight"),
        ("layers.3.ffn.gate.bias", "model.layers.3.mlp.gate.e_score_correction_bias"),
        ("layers.3.ffn.gate.tid2eid", "model.layers.3.mlp.gate.tid2eid"),
        ("layers.3.ffn.shared_experts.w2.weight", "model.layers.3.mlp.shared_experts.down_proj.weight"),
        ("layers.3.ffn.shared_experts.up_proj.scales", "model.layers.3.mlp.shared_experts.up_proj.scales"),
    ],
)
def test_published_names_become_the_models(prefix, published, own) -> None:
    assert own_name(prefix + published) == own


@pytest.mark.parametrize("name", ["mtp.0.attn.wq_a.weight", "model.mtp.0.e_proj.weight"])
def test_multi_token_prediction_has_no_place_in_the_model(name) -> None:
    assert own_name(name) is None
    assert REGISTRY["deepseek_v4"].is_unused(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "layers", "layers.", "layers.1", "layers.1.", "layers.1.attn", "layers.1.attn.indexer",
     "hc_head", "layers.1.attn.indexer.compressor", "layers.1.ffn.shared_experts", "vision.weight",
     "layers.1.hc_attn_"],
)  # fmt: skip
def test_odd_names_do_no_harm(name) -> None:
    own_name(name)
