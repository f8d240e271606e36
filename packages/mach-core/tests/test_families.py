"""What each family's config.json means; the models made of it are compared with a reference in tests/."""

from collections.abc import Callable
from typing import Any

import pytest

from mach.errors import ConfigError
from mach.io.arch_registry import adapter_for
from mach.io.config_file import ConfigFields
from mach.io.families import gemma4
from mach.io.model_tensors import model_config, unsupported_value


@pytest.fixture
def normalised(families: dict[str, dict]) -> Callable[..., dict[str, Any]]:
    """A function (family, changes of the language model's fields) → the normalised ones."""

    def make(family: str, **changes: object) -> dict[str, Any]:
        config = families[family]
        text = config.get("text_config", config)
        text |= {name: value for name, value in changes.items() if value is not ...}
        for name, value in changes.items():
            if value is ...:
                text.pop(name, None)
        fields = ConfigFields(config, "config.json")
        values = model_config(family, fields, adapter_for(fields).text_config(fields)).values
        found: dict[str, Any] = values.get("text_config", values)
        return found

    return make


def test_qwen3_moe_is_read_as_transformers_5_writes_it(normalised: Callable[..., dict]) -> None:
    rope = {"rope_type": "default", "rope_theta": 123.0}
    found = normalised(
        "qwen3_moe", num_experts=..., num_local_experts=8, rope_parameters=rope, rope_theta=...
    )
    assert (found["num_experts"], found["rope_theta"]) == (8, 123.0)
    assert normalised("qwen3_moe", head_dim=..., num_attention_heads=8)["head_dim"] == 16
    assert normalised("qwen3_moe", mlp_only_layers=None)["mlp_only_layers"] == []


def test_qwen3_5_moe_always_has_layer_types(normalised: Callable[..., dict]) -> None:
    linear, full = "linear_attention", "full_attention"
    assert normalised("qwen3_5_moe")["layer_types"] == [linear, linear, linear, full]
    own = [full, linear, full, linear]
    assert normalised("qwen3_5_moe", layer_types=own)["layer_types"] == own
    with pytest.raises(ConfigError, match="text_config.linear_num_value_heads is 3, not a multiple of 2"):
        normalised("qwen3_5_moe", linear_num_value_heads=3)


def test_qwen3_5_moe_may_stand_unwrapped(families: dict[str, dict]) -> None:
    values = families["qwen3_5_moe"]["text_config"] | {"model_type": "qwen3_5_moe"}
    fields = ConfigFields(values, "config.json")
    found = model_config("qwen3_5_moe", fields, fields)
    assert found.values["text_config"]["rope_parameters"]["rope_theta"] == 1e7
    assert unsupported_value("qwen3_5_moe", found) is None


def test_gpt_oss_without_rotary_parameters_has_the_references(normalised: Callable[..., dict]) -> None:
    rope = normalised("gpt_oss")["rope_scaling"]
    assert (rope["rope_type"], rope["rope_theta"], rope["truncate"]) == ("yarn", 150000.0, False)
    plain = normalised("gpt_oss", rope_scaling={"rope_type": "default"}, rope_theta=10000)
    assert plain["rope_scaling"] == {"rope_type": "default", "rope_theta": 10000}
    odd = normalised("gpt_oss", num_hidden_layers=3, layer_types=...)
    assert odd["layer_types"] == ["sliding_attention", "full_attention", "sliding_attention"]
    spelt = normalised("gpt_oss", num_experts_per_tok=..., experts_per_token=2)
    assert spelt["num_experts_per_tok"] == 2


def test_gemma4_takes_its_vocabulary_from_inside(families: dict[str, dict]) -> None:
    config = families["gemma4"]
    for inside, outside in ((256, 999), (256, None), (None, 256)):
        config["text_config"]["vocab_size"], config["vocab_size"] = inside, outside
        for place in (config, config["text_config"]):
            if place["vocab_size"] is None:
                del place["vocab_size"]
        fields = ConfigFields(config, "config.json")
        found = model_config("gemma4", fields, ConfigFields(config["text_config"], "config.json")).values
        assert found["vocab_size"] == found["text_config"]["vocab_size"] == 256


def test_gemma4_has_the_references_defaults_and_a_full_last_layer(normalised: Callable[..., dict]) -> None:
    found = normalised("gemma4", num_kv_shared_layers=..., layer_types=["sliding_attention"] * 4)
    assert (found["num_kv_shared_layers"], found["final_logit_softcapping"]) == (0, None)
    assert found["layer_types"] == ["sliding_attention"] * 3 + ["full_attention"]
    assert found["rope_parameters"]["full_attention"]["rope_type"] == "proportional"
    assert normalised("gemma4", layer_types=..., num_hidden_layers=7)["layer_types"] == (
        ["sliding_attention"] * 5 + ["full_attention"] * 2
    )


def test_gemma4_takes_sizes_of_full_layers_from_their_exceptions(normalised: Callable[..., dict]) -> None:
    size = {"head_dim": 48, "num_key_value_heads": 1}
    found = normalised("gemma4", per_layer_config={"1": size, "3": size})
    assert (found["global_head_dim"], found["num_global_key_value_heads"]) == (48, 1)
    for wrong in ({"1": size}, {"1": size, "3": {"head_dim": 48}}, {"0": size, "1": size, "3": size}, {}):
        with pytest.raises(ConfigError, match="per_layer_config must give all full-attention layers"):
            normalised("gemma4", per_layer_config=wrong)
    with pytest.raises(ConfigError, match="num_key_value_heads may differ only where attention_k_eq_v"):
        normalised("gemma4", per_layer_config={"1": size, "3": size}, attention_k_eq_v=False)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({}, "rope_parameters.sliding_attention is missing"),
        ({"sliding_attention": {"rope_theta": 1e4}}, "rope_parameters.full_attention is missing"),
        ({"sliding_attention": {}, "full_attention": {}}, "sliding_attention.rope_theta is missing"),
        (
            {
                "sliding_attention": {"rope_theta": 1e4},
                "full_attention": {"rope_theta": 1e4, "partial_rotary_factor": 2},
            },
            "full_attention.partial_rotary_factor is outside 0 to 1",
        ),
    ],
)
def test_gemma4_needs_the_rotary_parameters_of_both_kinds(
    normalised: Callable[..., dict], rope: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        normalised("gemma4", rope_parameters=rope)


def test_gemma4s_head_is_found_outside_the_language_model() -> None:
    tied, apart = (ConfigFields({"tie_word_embeddings": value}, "config.json") for value in (True, False))
    for name in ("lm_head.weight", "language_model.lm_head.weight"):
        assert gemma4.path_of(name, apart) == "language_model.lm_head.weight"
        assert gemma4.path_of(name, tied) is None


def test_a_null_that_the_published_configurations_refuse_is_refused(normalised: Callable[..., dict]) -> None:
    with pytest.raises(ConfigError, match="head_dim is null"):
        normalised("qwen3_moe", head_dim=None)


def test_a_family_without_a_module_here_keeps_its_config(families: dict[str, dict]) -> None:
    fields = ConfigFields({"model_type": "another"}, "config.json")
    assert model_config("another", fields, fields) is fields
    assert unsupported_value("another", fields) is None
