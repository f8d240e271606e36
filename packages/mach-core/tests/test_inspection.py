import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mach.errors import CheckpointNotFoundError, HeaderError, UnknownArchitectureError, UnsupportedLayoutError
from mach.io.inspection import inspect_checkpoint

QUANTIZED = {"quantization": {"bits": 4, "group_size": 64}}


@pytest.mark.parametrize("model_type", ["qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4", "deepseek_v4"])
@pytest.mark.parametrize("bits", [4, None])
def test_stacked_experts_of_every_family_are_tabled(
    model_type: str,
    bits: int | None,
    families: dict[str, dict],
    make_checkpoint: Callable[..., Path],
    stacked: Callable[..., dict],
) -> None:
    config = families[model_type] | (QUANTIZED if bits else {})
    tensors = stacked(config, bits)
    found = inspect_checkpoint(make_checkpoint(config, tensors))
    assert (found.layout, found.adapter.model_type) == ("stacked", model_type)
    assert found.quantization.label == ("affine (4-bit)" if bits else "bf16")
    assert sorted(found.stacked) == list(found.shape.moe_layers)
    module = found.expert_module(1, "up_proj")
    assert found.stacked[1]["up_proj"]["weight"] is found.tensors[f"{module}.weight"]
    parts = {"weight", "scales", "biases"} if bits else {"weight"}
    assert set(found.stacked[0]["down_proj"]) == parts | ({"bias"} if model_type == "gpt_oss" else set())
    assert found.other_bytes == sum(entry.nbytes for entry in found.others.values()) > 2 * 256 * 128
    assert found.expert_bytes + found.other_bytes == sum(t.nbytes for t in found.tensors.values())
    assert found.sidecar_directory is None


def test_raw_experts_are_told_from_stacked_ones(
    families: dict[str, dict], make_checkpoint: Callable[..., Path], per_expert: Callable[..., dict]
) -> None:
    config = families["qwen3_moe"]
    found = inspect_checkpoint(make_checkpoint(config, per_expert(config)))
    assert found.layout == "per_expert"
    assert found.expert_bytes == 2 * 8 * 3 * 128 * 64 * 2


def test_fused_experts_of_each_family_are_recognised(
    families: dict[str, dict], make_checkpoint: Callable[..., Path]
) -> None:
    names = {
        "qwen3_5_moe": "model.language_model.layers.{}.mlp.experts.{}",
        "gemma4": "model.language_model.layers.{}.experts.{}",
        "gpt_oss": "model.layers.{}.mlp.experts.{}_blocks",
        "qwen3_moe": "model.layers.{}.mlp.experts.{}",
    }
    for model_type, name in names.items():
        config = families[model_type]
        layers = config.get("text_config", config)["num_hidden_layers"]
        tensors = {
            name.format(layer, p): ("U8", (8, 4))
            for layer in range(layers)
            for p in ("gate_up_proj", "down_proj")
        }
        found = inspect_checkpoint(make_checkpoint(config, tensors, name=model_type))
        assert found.layout == "fused", found.layout_reason


def test_deepseeks_own_names_are_per_expert(
    families: dict[str, dict], make_checkpoint: Callable[..., Path]
) -> None:
    tensors = {
        f"layers.{layer}.ffn.experts.{expert}.{w}.{part}": ("U8", (4, 4))
        for layer in range(4)
        for expert in range(8)
        for w in ("w1", "w2", "w3")
        for part in ("weight", "scale")
    } | {
        "mtp.0.ffn.experts.0.w1.weight": ("U8", (16,)),
        "layers.0.ffn.shared_experts.w1.weight": ("U8", (2,)),
    }
    found = inspect_checkpoint(make_checkpoint(families["deepseek_v4"], tensors))
    assert found.layout == "per_expert"
    assert (found.unused_bytes, found.other_bytes) == (16, 2)


def test_a_sidecar_without_expert_tensors_is_sliced(
    families: dict[str, dict], make_checkpoint: Callable[..., Path]
) -> None:
    directory = make_checkpoint(families["qwen3_moe"] | QUANTIZED, {"model.norm.weight": ("BF16", (128,))})
    assert inspect_checkpoint(directory).layout == "unknown"
    (directory / "expert_sidecar").mkdir()
    (directory / "expert_sidecar" / "layout.json").write_text("{}")
    found = inspect_checkpoint(directory)
    assert found.layout == "sliced"
    assert found.sidecar_directory == str(directory / "expert_sidecar")
    assert found.quantization.label == "affine (4-bit)"


def test_a_dense_model_of_a_known_family_is_dense(
    families: dict[str, dict], make_checkpoint: Callable[..., Path]
) -> None:
    families["gemma4"]["text_config"]["enable_moe_block"] = False
    assert inspect_checkpoint(make_checkpoint(families["gemma4"], {})).layout == "dense"


def test_incomplete_mixed_and_surplus_experts_are_unknown_with_the_reason(
    families: dict[str, dict],
    make_checkpoint: Callable[..., Path],
    stacked: Callable[..., dict],
    per_expert: Callable[..., dict],
) -> None:
    config = families["qwen3_moe"]
    tensors = per_expert(config)
    del tensors["model.layers.1.mlp.experts.5.up_proj.weight"]
    found = inspect_checkpoint(make_checkpoint(config, tensors, name="incomplete"))
    assert (found.layout, "layer 1, expert 5 has no up_proj" in found.layout_reason) == ("unknown", True)
    found = inspect_checkpoint(make_checkpoint(config, stacked(config) | per_expert(config), name="mixed"))
    assert (found.layout, "several layouts" in found.layout_reason) == ("unknown", True)
    surplus = stacked(config | {"num_hidden_layers": 3})
    found = inspect_checkpoint(make_checkpoint(config, surplus, name="surplus"))
    assert (found.layout, "beyond config.json: layer 2" in found.layout_reason) == ("unknown", True)


def test_stacked_tensors_that_contradict_the_config_are_refused(
    families: dict[str, dict], make_checkpoint: Callable[..., Path], stacked: Callable[..., dict]
) -> None:
    config, scales = families["qwen3_moe"], "model.layers.1.mlp.switch_mlp.up_proj.scales"
    wrong_experts = stacked(config | {"num_experts": 7}, 4)
    with pytest.raises(HeaderError, match=r"weight is \[7, 64, 16\], but config.json makes it \[8, 64, 16\]"):
        inspect_checkpoint(make_checkpoint(config | QUANTIZED, wrong_experts, name="a"))
    with pytest.raises(HeaderError, match="are quantised, but config.json's quantization says otherwise"):
        inspect_checkpoint(make_checkpoint(config, stacked(config, 4), name="b"))
    lacking = stacked(config, 4)
    del lacking["model.layers.1.mlp.switch_mlp.up_proj.biases"]
    with pytest.raises(UnsupportedLayoutError, match="up_proj.biases is missing"):
        inspect_checkpoint(make_checkpoint(config | QUANTIZED, lacking, name="c"))
    wrong_group = stacked(config, 4) | {scales: ("BF16", (8, 64, 4))}
    with pytest.raises(HeaderError, match="scales is"):
        inspect_checkpoint(make_checkpoint(config | QUANTIZED, wrong_group, name="d"))


def test_a_quantised_config_over_plain_experts_counts_as_plain(
    families: dict[str, dict], make_checkpoint: Callable[..., Path], stacked: Callable[..., dict]
) -> None:
    config = families["qwen3_moe"] | QUANTIZED
    assert inspect_checkpoint(make_checkpoint(config, stacked(config))).quantization.label == "bf16"


def test_a_foreign_packing_is_reported_and_not_measured(
    families: dict[str, dict], make_checkpoint: Callable[..., Path], stacked: Callable[..., dict]
) -> None:
    for index, fields in enumerate(
        (
            {"quantization": {"expert_format": "gguf"}},
            {"quantization_config": {"quant_method": "fp8"}},
            {"quantization_config": {"quant_method": "gptq", "group_size": -1}},
        )
    ):
        config = families["qwen3_moe"] | fields
        found = inspect_checkpoint(make_checkpoint(config, stacked(config, 4), name=str(index)))
        assert found.layout == "stacked"
        assert found.quantization.mode in ("gguf", "fp8", "gptq")


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        inspect_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UnknownArchitectureError):
        inspect_checkpoint(tmp_path)
