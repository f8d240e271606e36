import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mach_store.deepseek_v4 import Model, ModelArgs
from mach_store.errors import StoreError

PUBLISHED = {  # part of an own name → as published
    "model.embed_tokens.": "embed.",
    "model.norm.": "norm.",
    "lm_head.": "head.",
    "model.hc_head.hc_": "hc_head_",
    "model.layers.": "layers.",
    ".self_attn.compressor.indexer.scorer.": ".attn.indexer.",
    ".self_attn.compressor.indexer.q_b_proj": ".attn.indexer.wq_b",
    ".self_attn.compressor.indexer.": ".attn.indexer.compressor.",
    ".self_attn.": ".attn.",
    ".sinks": ".attn_sink",
    ".q_a_proj": ".wq_a",
    ".q_a_norm": ".q_norm",
    ".q_b_proj": ".wq_b",
    ".attn.kv_proj": ".attn.wkv",
    ".o_a_proj": ".wo_a",
    ".o_b_proj": ".wo_b",
    "compressor.kv_proj": "compressor.wkv",
    "compressor.gate_proj": "compressor.wgate",
    "compressor.position_bias": "compressor.ape",
    "compressor.kv_norm": "compressor.norm",
    ".input_layernorm": ".attn_norm",
    ".post_attention_layernorm": ".ffn_norm",
    ".attn_hc.": ".hc_attn_",
    ".ffn_hc.": ".hc_ffn_",
    ".mlp.": ".ffn.",
    ".gate.e_score_correction_bias": ".gate.bias",
    ".shared_experts.gate_proj": ".shared_experts.w1",
    ".shared_experts.up_proj": ".shared_experts.w3",
    ".shared_experts.down_proj": ".shared_experts.w2",
}


def published(name: str) -> str:
    for own, theirs in PUBLISHED.items():
        name = name.replace(own, theirs)
    return name


@pytest.fixture
def model(config) -> Model:
    return Model(ModelArgs.from_dict(config("deepseek_v4", "none")))


@pytest.fixture
def weights(model) -> dict[str, mx.array]:
    return {name: value for name, value in tree_flatten(model.parameters()) if "switch_mlp" not in name}


@pytest.mark.parametrize(
    "spelling", [str, published, lambda name: "model." + published(name)], ids=["own", "published", "model."]
)
def test_each_spelling_becomes_the_models_own(model, weights, spelling) -> None:
    spelled = {spelling(name): value for name, value in weights.items()}
    assert len(spelled) == len(weights)
    bound = model.sanitize(spelled)
    assert bound.keys() == weights.keys()
    assert all(bound[name] is value for name, value in weights.items() if "tid2eid" not in name)
    assert model.unbound == (0, 0)


def test_published_names_are_those_of_the_published_index() -> None:
    block, theirs = "model.layers.2.self_attn.compressor.indexer.", "layers.2.attn.indexer."
    for own, expected in {
        f"{block}kv_proj.weight": f"{theirs}compressor.wkv.weight",
        f"{block}scorer.weights_proj.weight": f"{theirs}weights_proj.weight",
        "model.layers.0.mlp.gate.tid2eid": "layers.0.ffn.gate.tid2eid",
        "model.layers.4.mlp.gate.e_score_correction_bias": "layers.4.ffn.gate.bias",
        "model.layers.4.attn_hc.fn": "layers.4.hc_attn_fn",
        "model.hc_head.hc_scale": "hc_head_scale",
    }.items():
        assert published(own) == expected


def test_multi_token_prediction_is_counted_and_not_bound(model, weights) -> None:
    extra = {
        "mtp.0.attn.wq_a.weight": mx.zeros((4, 8)),
        "model.mtp.0.norm.weight": mx.zeros((3,), mx.bfloat16),
    }
    assert model.sanitize(weights | extra).keys() == weights.keys()
    assert model.unbound == (2, 4 * 8 * 4 + 3 * 2)


@pytest.mark.parametrize(
    "name", ["layers.1.attn.wq_a.scale", "model.layers.1.self_attn.q_a_proj.weight_scale_inv", "head.scale"]
)
def test_scales_of_float8_blocks_are_refused(model, weights, name) -> None:
    with pytest.raises(StoreError, match=f"{name}.*mach-prune"):
        model.sanitize(weights | {name: mx.zeros((2, 2))})


def test_bytes_that_are_no_numbers_are_refused(model, weights) -> None:
    name = "model.layers.1.self_attn.q_a_proj.weight"
    with pytest.raises(StoreError, match="uint8 without scales.*mach-prune"):
        model.sanitize(weights | {name: mx.zeros((32, 64), mx.uint8)})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (mx.full((96, 2), 8), "routes tokens to expert 8, but there are 8"),
        (mx.full((96, 2), -1), "routes tokens to expert -1"),
        (mx.zeros((96, 2)), "no table of experts"),
        (mx.zeros((0, 2), mx.int32), "no table of experts"),
    ],
)
def test_a_table_that_names_no_expert_is_refused(model, weights, table, message) -> None:
    table = table if "no table" in message else table.astype(mx.int64)
    with pytest.raises(StoreError, match=message):
        model.sanitize(weights | {"model.layers.0.mlp.gate.tid2eid": table})


def test_a_tensor_that_stands_there_in_two_spellings_is_refused(model, weights) -> None:
    with pytest.raises(StoreError, match="'embed.weight' is there twice"):
        model.sanitize(weights | {"embed.weight": weights["model.embed_tokens.weight"]})
