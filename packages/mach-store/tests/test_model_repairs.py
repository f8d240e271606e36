import mlx.core as mx
import pytest

from mach.io.arch_registry import REGISTRY
from mach.io.config_file import ConfigFields
from mach_store.errors import StoreError
from mach_store.model_builder import family_classes
from mach_store.model_repairs import Float32Norm, repair_model, repair_weights
from mach_store.yarn_rope import YarnRope

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def model_of(config: dict):
    family = config["model_type"]
    base, arguments, values = family_classes(REGISTRY[family], ConfigFields(config, "config.json"))
    return base(arguments.from_dict(values))


def test_yarn_is_ours_in_every_layer_that_attends(config) -> None:
    for family in ("qwen3_moe", "gpt_oss"):
        model = model_of(config(family, "none") | {"rope_scaling": YARN})
        assert all(isinstance(layer.self_attn.rope, YarnRope) for layer in model.layers)
        assert not isinstance(model_of(config(family, "none")).layers[0].self_attn.rope, YarnRope)
    fields = config("qwen3_5_moe", "none")
    fields["text_config"]["rope_parameters"] |= YARN
    full = [layer for layer in model_of(fields).layers if not layer.is_linear]
    assert full
    assert [layer.self_attn.rope.dims for layer in full] == [8] * len(full)


@pytest.mark.parametrize("interval", [1, 2, 4])
@pytest.mark.parametrize(
    "linear", [(True, False, True, True), (False, True, True, False), (True, True, True, True)]
)
def test_layers_are_of_the_types_that_are_declared(config, interval, linear) -> None:
    fields = config("qwen3_5_moe", "none")
    types = ["linear_attention" if one else "full_attention" for one in linear]
    fields["text_config"] |= {"layer_types": types, "full_attention_interval": interval}
    model = model_of(fields)
    assert tuple(layer.is_linear for layer in model.layers) == linear
    caches = model.make_cache()
    for chunk in ([[1, 2, 3]], [[4]], [[5, 6]]):
        assert mx.isfinite(model(mx.array(chunk), cache=caches)).all()


def test_ones_are_added_to_norms_in_float32() -> None:
    weights = {
        "model.norm.weight": mx.array([0.001], mx.bfloat16),
        "layers.0.self_attn.q_norm.weight": mx.array([0.001], mx.bfloat16),
        "layers.0.mlp.gate.weight": mx.zeros((2, 2), mx.bfloat16),
    }
    repaired = repair_weights("qwen3_5_moe", weights, {})
    assert [array.dtype for array in repaired.values()] == [mx.float32, mx.float32, mx.bfloat16]
    assert (repaired["model.norm.weight"] + 1.0).item() > 1.0009
    assert repair_weights("qwen3_moe", weights, {}) is weights


def test_narrow_activations_stay_narrow_under_wide_norms(config) -> None:
    fields = config("qwen3_5_moe", "none")
    model = model_of(fields)
    text = fields["text_config"] | {"layer_types": ["linear_attention"] * 3 + ["full_attention"]}
    repair_model("qwen3_5_moe", model, {"text_config": text}, mx.bfloat16)
    inner = model.language_model.model
    norms = [inner.norm, inner.layers[0].input_layernorm, inner.layers[3].self_attn.q_norm]
    assert all(isinstance(norm, Float32Norm) for norm in norms)
    assert not isinstance(inner.layers[0].linear_attn.norm, Float32Norm)
    x = mx.ones((1, 2, inner.norm.weight.shape[0]), mx.bfloat16)
    assert inner.norm.weight.dtype == mx.float32
    assert inner.norm(x).dtype == mx.bfloat16


def test_a_head_outside_the_language_model_is_moved_in_or_dropped() -> None:
    head = mx.zeros((2, 2))
    for name in ("lm_head.weight", "language_model.lm_head.weight"):
        for tied, expected in ((False, ["language_model.lm_head.weight"]), (True, [])):
            assert list(repair_weights("gemma4", {name: head}, {"tie_word_embeddings": tied})) == expected


def test_a_value_that_is_not_computed_is_refused_before_anything_is_built(config) -> None:
    with pytest.raises(StoreError, match="attention_bias is 'True'; only false is computed"):
        model_of(config("qwen3_moe", "none") | {"attention_bias": True})
