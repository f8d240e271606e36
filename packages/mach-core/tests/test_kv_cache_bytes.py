import pytest

from mach.errors import ConfigError
from mach.io.arch_registry import REGISTRY
from mach.io.config_file import ConfigFields
from mach.preflight.kv_cache_bytes import KvBytes, context_length, kv_cache_bytes


def kv_of(config: dict, context: int, element: int = 2) -> KvBytes:
    return kv_cache_bytes(
        REGISTRY[config["model_type"]], ConfigFields(config, "config.json"), context, element
    )


def test_standard_caches_grow_in_steps_of_256_tokens(families: dict[str, dict]) -> None:
    per_token = 2 * 2 * 2 * 32 * 2  # layers, K and V, heads, width, bytes
    assert kv_of(families["qwen3_moe"], 256).total == 256 * per_token
    assert kv_of(families["qwen3_moe"], 257).total == 512 * per_token


def test_a_published_model_has_its_known_size() -> None:
    # Qwen3-30B-A3B: 48 layers, 4 key-value heads of 128.
    config = {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
    }
    assert kv_of(config, 8192).total == 48 * 2 * 4 * 128 * 2 * 8192


def test_hybrid_caches_grow_in_their_full_attention_layers_alone(families: dict[str, dict]) -> None:
    config = families["qwen3_5_moe"]
    short, long = kv_of(config, 256), kv_of(config, 2560)
    assert long.parts["full attention"] == 10 * short.parts["full attention"] == 10 * 2 * 2 * 32 * 2 * 256
    assert long.parts["recurrent state"] == short.parts["recurrent state"]
    assert short.parts["recurrent state"] == 3 * (3 * (2 * 2 * 32 + 4 * 32) * 2 + 4 * 32 * 32 * 4)


def test_sliding_windows_bound_their_layers(families: dict[str, dict]) -> None:
    parts = kv_of(families["gpt_oss"], 4096).parts
    assert parts == {"full attention": 2 * 2 * 32 * 2 * 4096, "sliding window": 2 * 2 * 32 * 2 * 16}
    parts = kv_of(families["gemma4"], 256).parts
    assert parts["full attention"] == 2 * 2 * 1 * 64 * 2 * 256  # global heads and widths


def test_layers_that_share_their_keys_have_no_cache(families: dict[str, dict]) -> None:
    families["gemma4"]["text_config"]["num_kv_shared_layers"] = 2
    assert kv_of(families["gemma4"], 256).parts["full attention"] == 2 * 64 * 2 * 256


def test_compressed_caches_keep_a_row_per_ratio(families: dict[str, dict]) -> None:
    parts = kv_of(families["deepseek_v4"], 1024).parts
    assert parts["compressed rows"] == (256 + 64 + 256) * 64 * 2  # 8 entries of ratio 128 take a step of 64
    assert parts["indexer keys"] == (256 + 256) * 32 * 2
    assert parts["sliding window"] == 4 * 15 * 64 * 2  # the token itself comes with the pass


def test_compressed_caches_keep_the_tokens_of_open_groups(families: dict[str, dict]) -> None:
    # Two layers of ratio 4, each with two compressors: keys and gates of the last group, one series of two.
    closed = 2 * 2 * 4 * (64 + 32) * 2
    assert kv_of(families["deepseek_v4"], 1024).parts["open groups"] == closed
    waiting = 2 * 2 * 2 * 3 * (64 + 32) * 2 + 2 * 3 * 64 * 2  # three tokens, two series; in ratio 128, one
    assert kv_of(families["deepseek_v4"], 1027).parts["open groups"] == closed + waiting
    assert kv_of(families["deepseek_v4"], 3).parts["open groups"] == waiting


def test_the_context_is_asked_for_or_the_models_up_to_8192(families: dict[str, dict]) -> None:
    adapter = REGISTRY["qwen3_moe"]
    for config, asked, expected in [
        (families["qwen3_moe"], None, 4096),
        (families["qwen3_moe"] | {"max_position_embeddings": 10**6}, None, 8192),
        (families["qwen3_moe"], 123, 123),
        ({"model_type": "qwen3_moe"}, None, 8192),
    ]:
        assert context_length(adapter, ConfigFields(config, "config.json"), asked) == expected


def test_hostile_fields_are_refused(families: dict[str, dict]) -> None:
    for model_type, field, value in [
        ("qwen3_moe", "num_key_value_heads", -1),
        ("gpt_oss", "layer_types", ["full_attention"]),
        ("gpt_oss", "layer_types", [1, 2]),
        ("deepseek_v4", "compress_ratios", [-4]),
    ]:
        with pytest.raises(ConfigError, match=field):
            kv_of(families[model_type] | {field: value}, 256)
