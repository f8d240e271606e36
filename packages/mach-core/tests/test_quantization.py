import pytest
from hypothesis import given
from hypothesis import strategies as st

from mach.errors import ConfigError
from mach.io.arch_registry import REGISTRY
from mach.io.config_file import ConfigFields
from mach.io.quantization import QuantScheme, RoutedQuantization, routed_quantization


def quantization_of(config: dict, dtype: str | None = None) -> RoutedQuantization:
    adapter, fields = REGISTRY[config["model_type"]], ConfigFields(config, "config.json")
    return routed_quantization(adapter, fields, adapter.moe_shape(fields), dtype)


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({"quantization": {"bits": 4, "group_size": 64}}, "affine (4-bit)"),
        ({"quantization": {"bits": 8, "group_size": 32, "mode": "affine"}}, "affine (8-bit)"),
        ({"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}, "mxfp4 (4-bit)"),
        ({"quantization": {"mode": "nvfp4"}}, "nvfp4 (4-bit)"),
        ({"quantization_config": {"bits": 4, "group_size": 64}}, "affine (4-bit)"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4 (4-bit)"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "fp8 (8-bit)"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq (4-bit)"),
        ({"quantization": {"expert_format": "gguf", "bits": 2}}, "gguf (2-bit)"),
        ({"torch_dtype": "bfloat16"}, "bf16"),
        ({"torch_dtype": None, "dtype": "float32"}, "f32"),
        ({"torch_dtype": None}, "unknown"),
    ],
)
def test_each_dialect_gets_its_label(families: dict[str, dict], fields: dict, label: str) -> None:
    assert quantization_of(families["qwen3_moe"] | fields).label == label


def test_the_stored_dtype_wins_over_the_configs(families: dict[str, dict]) -> None:
    assert quantization_of(families["qwen3_moe"], "F32").label == "f32"


def test_overrides_of_routed_modules_count_and_others_do_not(families: dict[str, dict]) -> None:
    config = families["qwen3_moe"] | {
        "quantization": {
            "bits": 4,
            "group_size": 64,
            "model.layers.0.mlp.gate": {"bits": 8, "group_size": 64},
            "model.layers.1.mlp.switch_mlp.down_proj": {"bits": 6, "group_size": 64},
        }
    }
    quantization = quantization_of(config)
    assert quantization.label == "affine (mixed 4/6-bit)"
    assert not quantization.uniform
    assert quantization.scheme_for("model.layers.1.mlp.switch_mlp.down_proj") == QuantScheme("affine", 6, 64)
    assert quantization.scheme_for("model.layers.0.mlp.switch_mlp.down_proj") == QuantScheme("affine", 4, 64)


def test_experts_left_unquantised_by_override_are_so(families: dict[str, dict]) -> None:
    config = families["qwen3_moe"] | {
        "quantization": {"bits": 4, "model.layers.0.mlp.switch_mlp.up_proj": False}
    }
    assert quantization_of(config).scheme_for("model.layers.0.mlp.switch_mlp.up_proj") is None


def test_defaults_come_from_the_architecture(families: dict[str, dict]) -> None:
    assert quantization_of(families["gpt_oss"] | {"quantization": {}}).scheme == QuantScheme("affine", 4, 32)


def test_fp4_experts_beside_fp8_are_mxfp4(families: dict[str, dict]) -> None:
    config = families["deepseek_v4"] | {"expert_dtype": "fp4", "quantization_config": {"quant_method": "fp8"}}
    assert quantization_of(config).scheme == QuantScheme("mxfp4", 4, 32)


@pytest.mark.parametrize(
    "fields",
    [
        {"mode": "magic"},
        {"bits": 7},
        {"bits": "4"},
        {"bits": 4, "group_size": 48},
        {"mode": "mxfp4", "bits": 8},
        {"model.layers.0.mlp.switch_mlp.up_proj": 4},
    ],
)
def test_schemes_that_do_not_exist_are_refused(families: dict[str, dict], fields: dict) -> None:
    with pytest.raises(ConfigError, match="config.json: quantization\\."):
        quantization_of(families["qwen3_moe"] | {"quantization": fields})


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-1, 300)
    | st.sampled_from(["affine", "mxfp4", "fp8", "gguf", "x"])
)
FIELDS = st.dictionaries(
    st.sampled_from(
        [
            "mode",
            "bits",
            "group_size",
            "quant_method",
            "expert_format",
            "weight_block_size",
            "model.layers.0.mlp.switch_mlp.up_proj",
        ]
    ),
    VALUES | st.lists(VALUES, max_size=3) | st.dictionaries(st.sampled_from(["mode", "bits"]), VALUES),
)


@given(FIELDS | VALUES, FIELDS | VALUES)
def test_any_quantization_is_understood_or_a_config_error(mlx: object, foreign: object) -> None:
    config = {
        "model_type": "qwen3_moe",
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "quantization": mlx,
        "quantization_config": foreign,
    }
    try:
        assert quantization_of(config).label
    except ConfigError as error:
        assert "config.json" in str(error)
