import json
from pathlib import Path

import pytest

from mach.errors import CheckpointNotFoundError, ConfigError, UnknownArchitectureError
from mach.io.arch_registry import (
    REGISTRY,
    arch_summary,
    continuous_batching_for,
    detect_arch,
    registry_summary,
)

# The `arch` block of GET /v1/capabilities, to the letter.
CAPABILITY_KEYS = [
    "model_type",
    "swiglu_variant",
    "stacked_supported",
    "has_expert_bias",
    "text_config_wrapped",
    "model_module",
    "default_bits",
    "default_group_size",
    "kv_cache_kind",
    "specdec_kind",
    "continuous_batching",
]


def test_the_documented_architectures_are_registered() -> None:
    assert list(REGISTRY) == ["deepseek_v4", "qwen3_5_moe", "qwen3_moe", "gpt_oss", "gemma4"]
    assert all(adapter.model_type == key for key, adapter in REGISTRY.items())


def test_a_summary_is_the_serving_pages_arch_block() -> None:
    assert arch_summary(REGISTRY["qwen3_5_moe"]) == {
        "model_type": "qwen3_5_moe",
        "swiglu_variant": "plain_swiglu",
        "stacked_supported": True,
        "has_expert_bias": False,
        "text_config_wrapped": True,
        "model_module": "mach.models.qwen3_5_moe",
        "default_bits": 4,
        "default_group_size": 64,
        "kv_cache_kind": "hybrid_gdn",
        "specdec_kind": "specdec_v7",
        "continuous_batching": "ok",
    }
    assert all(list(arch) == CAPABILITY_KEYS for arch in registry_summary())
    assert json.loads(json.dumps(registry_summary())) == registry_summary()


def facts(key: str) -> dict[str, object]:
    return {arch["model_type"]: arch[key] for arch in registry_summary()}


def test_the_static_facts_are_the_documented_ones() -> None:
    assert {m for m, value in facts("stacked_supported").items() if not value} == {"deepseek_v4"}
    assert {m for m, value in facts("has_expert_bias").items() if value} == {"gpt_oss"}
    assert {m for m, value in facts("text_config_wrapped").items() if value} == {"qwen3_5_moe", "gemma4"}
    assert facts("swiglu_variant") == {
        "deepseek_v4": "silu_limited",
        "qwen3_5_moe": "plain_swiglu",
        "qwen3_moe": "plain_swiglu",
        "gpt_oss": "silu_limited",
        "gemma4": "plain_geglu",
    }
    assert facts("default_group_size") == dict.fromkeys(REGISTRY, 64) | {"gpt_oss": 32}
    assert facts("specdec_kind") == {
        "deepseek_v4": "mtp_eagle3",
        "qwen3_5_moe": "specdec_v7",
        "qwen3_moe": "specdec_v7",
        "gpt_oss": None,
        "gemma4": None,
    }


def test_batching_follows_from_the_cache_kind() -> None:
    kinds = ("standard", "hybrid_gdn", "compressed", "rotating", "something new")
    assert [continuous_batching_for(kind) for kind in kinds] == ["ok", "ok", "blocked", "unknown", "unknown"]


def test_detection_takes_a_directory_or_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt_oss"}')
    assert detect_arch(tmp_path) == detect_arch(str(tmp_path / "config.json")) == "gpt_oss"


def test_detection_refuses_what_it_cannot_know(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        detect_arch(tmp_path)
    config = tmp_path / "config.json"
    config.write_text("{}")
    with pytest.raises(ConfigError, match="model_type is missing"):
        detect_arch(tmp_path)
    config.write_text('{"model_type": 5}')
    with pytest.raises(ConfigError, match="model_type is a JSON number"):
        detect_arch(tmp_path)
    config.write_text('{"model_type": "llama\\ud800"}')
    with pytest.raises(UnknownArchitectureError, match="mach-archs lists") as caught:
        detect_arch(tmp_path)
    assert caught.value.model_type == "llama\ud800"
    str(caught.value).encode()
