import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mach.errors import ConfigError
from mach.io.arch_adapter import MoeShape
from mach.io.arch_registry import REGISTRY
from mach.io.config_file import ConfigFields


def shape_of(config: dict) -> MoeShape:
    return REGISTRY[config["model_type"]].moe_shape(ConfigFields(config, "config.json"))


def test_each_family_gives_its_shape(families: dict[str, dict]) -> None:
    assert shape_of(families["qwen3_moe"]) == MoeShape(2, 8, 2, 128, 64, (0, 1))
    assert shape_of(families["qwen3_5_moe"]) == MoeShape(4, 8, 2, 128, 64, (0, 1, 2, 3))
    assert shape_of(families["gpt_oss"]) == MoeShape(2, 8, 2, 128, 128, (0, 1))
    assert shape_of(families["gemma4"]) == MoeShape(4, 8, 2, 128, 64, (0, 1, 2, 3))
    assert shape_of(families["deepseek_v4"]) == MoeShape(4, 8, 2, 128, 64, (0, 1, 2, 3))


def test_sparse_step_and_dense_layers_select_the_moe_layers(families: dict[str, dict]) -> None:
    config = families["qwen3_moe"] | {
        "num_hidden_layers": 6,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
    }
    assert shape_of(config).moe_layers == (1, 5)


def test_leading_dense_layers_are_left_out(families: dict[str, dict]) -> None:
    assert shape_of(families["deepseek_v4"] | {"first_k_dense_replace": 1}).moe_layers == (0, 1, 2, 3)


def test_a_model_without_experts_is_dense(families: dict[str, dict]) -> None:
    families["gemma4"]["text_config"]["enable_moe_block"] = False
    assert shape_of(families["gemma4"]).moe_layers == ()
    assert shape_of(families["qwen3_moe"] | {"num_experts": 0}).num_experts == 0


def test_newer_spellings_are_understood(families: dict[str, dict]) -> None:
    config = families["qwen3_moe"]
    config["num_local_experts"] = config.pop("num_experts")
    assert shape_of(config).num_experts == 8


def test_gemma4_without_its_nested_config_is_refused() -> None:
    with pytest.raises(ConfigError, match="text_config is missing"):
        shape_of({"model_type": "gemma4", "num_hidden_layers": 2})


def test_qwen3_5_fields_may_stand_at_the_top(families: dict[str, dict]) -> None:
    text = families["qwen3_5_moe"]["text_config"] | {"model_type": "qwen3_5_moe"}
    assert shape_of(text) == shape_of(families["qwen3_5_moe"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", -1),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", "2"),
        ("num_experts", 10**30),
        ("num_experts", True),
        ("num_experts_per_tok", 9),
        ("num_experts_per_tok", 0),
        ("moe_intermediate_size", -64),
        ("moe_intermediate_size", None),
        ("hidden_size", 1.5),
        ("decoder_sparse_step", 0),
        ("mlp_only_layers", [7]),
        ("mlp_only_layers", "none"),
    ],
)
def test_hostile_values_name_file_and_field(families: dict[str, dict], field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"config.json: {field} ") as caught:
        shape_of(families["qwen3_moe"] | {field: value})
    assert caught.value.field == field


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})
)


@given(st.sampled_from(sorted(REGISTRY)), st.data())
def test_any_values_give_a_shape_or_a_config_error(model_type: str, data: st.DataObject) -> None:
    names = {
        "num_hidden_layers",
        "hidden_size",
        *REGISTRY[model_type].shape_fields.experts,
        *REGISTRY[model_type].shape_fields.top_k,
        *REGISTRY[model_type].shape_fields.expert_width,
        "decoder_sparse_step",
        "mlp_only_layers",
        "first_k_dense_replace",
        "enable_moe_block",
    }
    values = {name: data.draw(SCALARS | st.integers(1, 8), label=name) for name in sorted(names)}
    config = {"model_type": model_type, "text_config": values, **values}
    try:
        shape = shape_of(json.loads(json.dumps(config)))
    except ConfigError as error:
        assert error.field
    else:
        assert all(0 <= layer < shape.num_layers for layer in shape.moe_layers)
        assert 0 <= shape.top_k <= shape.num_experts
