from collections.abc import Callable
from pathlib import Path

import pytest

from mach.io.exportable import export_problem
from mach.io.inspection import inspect_checkpoint

UP = "model.layers.1.mlp.switch_mlp.up_proj"


@pytest.mark.parametrize("model_type", ["qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4", "deepseek_v4"])
@pytest.mark.parametrize("bits", [4, None])
def test_stacked_experts_of_every_family_can_be_exported(
    model_type: str,
    bits: int | None,
    families: dict[str, dict],
    make_checkpoint: Callable[..., Path],
    stacked: Callable[..., dict],
) -> None:
    config = families[model_type] | ({"quantization": {"bits": 4, "group_size": 64}} if bits else {})
    assert export_problem(inspect_checkpoint(make_checkpoint(config, stacked(config, bits)))) is None


@pytest.mark.parametrize(
    ("quantization", "tensor", "dtype"),
    [
        ({"bits": 4, "group_size": 64}, f"{UP}.weight", "F32"),
        ({"bits": 4, "group_size": 64}, f"{UP}.scales", "U8"),
        (None, f"{UP}.weight", "U8"),
    ],
)
def test_a_stacked_tensor_of_another_dtype_is_named(
    quantization: dict | None,
    tensor: str,
    dtype: str,
    families: dict[str, dict],
    make_checkpoint: Callable[..., Path],
    stacked: Callable[..., dict],
) -> None:
    config = families["qwen3_moe"] | ({"quantization": quantization} if quantization else {})
    tensors = stacked(config, quantization and quantization["bits"])
    tensors[tensor] = (dtype, tensors[tensor][1])
    problem = export_problem(inspect_checkpoint(make_checkpoint(config, tensors)))
    assert problem is not None
    assert f"model.safetensors: layer 1: {tensor} is {dtype}, not " in problem


def test_what_holds_no_experts_says_why(
    families: dict[str, dict], make_checkpoint: Callable[..., Path], stacked: Callable[..., dict]
) -> None:
    sliced = make_checkpoint(families["qwen3_moe"], {"model.norm.weight": ("BF16", (128,))}, name="sliced")
    problem = export_problem(inspect_checkpoint(sliced))
    assert problem is not None and "unknown layout (no routed-expert tensors" in problem
    families["gemma4"]["text_config"]["enable_moe_block"] = False
    dense = make_checkpoint(families["gemma4"], {}, name="dense")
    problem = export_problem(inspect_checkpoint(dense))
    assert problem is not None and "no experts to export" in problem
    found = inspect_checkpoint(make_checkpoint(families["qwen3_moe"], stacked(families["qwen3_moe"])))
    problem = export_problem(found._replace(headers_read=False))
    assert problem is not None and "headers could not be read" in problem


def test_packings_of_others_are_refused_by_name(
    families: dict[str, dict], make_checkpoint: Callable[..., Path], stacked: Callable[..., dict]
) -> None:
    config = families["qwen3_moe"] | {"quantization": {"expert_format": "gguf"}}
    problem = export_problem(inspect_checkpoint(make_checkpoint(config, stacked(config, 4))))
    assert problem is not None and "gguf experts are not read" in problem
