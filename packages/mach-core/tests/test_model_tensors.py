import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mach.errors import ConfigError
from mach.io.arch_registry import adapter_for
from mach.io.config_file import ConfigFields
from mach.io.model_tensors import weights_problem
from mach.io.safetensors_header import TensorEntry

Others = dict[str, TensorEntry]


@pytest.fixture
def problem(families: dict[str, dict]) -> Callable[..., str | None]:
    """The problem that `weights_problem` sees in a family's tensors after `change` saw them."""

    def judge(
        family: str, tensors: dict, change: Callable[[Others], object] = lambda _: None, **config: object
    ) -> str | None:
        values = json.loads(json.dumps(families[family])) | config
        fields = ConfigFields(values, "config.json")
        adapter = adapter_for(fields)
        others = {name: TensorEntry(*tensor, "model.safetensors", 0, 1) for name, tensor in tensors.items()}
        change(others)
        return weights_problem(family, fields, adapter.text_config(fields), adapter.moe_shape(fields), others)

    return judge


@pytest.fixture
def dense(families: dict[str, dict], stacked: Callable[..., dict]) -> Callable[[str], dict]:
    """A family's tensors but routed experts."""
    return lambda family: {
        name: tensor
        for name, tensor in stacked(families[family]).items()
        if "switch_" not in name and ".mlp.experts." not in name
    }


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4"])
def test_one_tensor_too_few_too_many_or_misshapen_is_named(
    family: str, problem: Callable[..., str | None], dense: Callable[[str], dict]
) -> None:
    tensors = dense(family)
    assert problem(family, tensors) is None
    for name in tensors:
        assert f"lack {name}:" in str(problem(family, tensors, lambda others, n=name: others.pop(n)))
    odd = TensorEntry("BF16", (3, 3), "model.safetensors", 0, 18)
    assert "is none of this model's" in str(
        problem(family, tensors, lambda others: others.update(surplus=odd))
    )
    name = next(iter(tensors))
    assert f"{name!r} is [3, 3]" in str(problem(family, tensors, lambda others: others.update({name: odd})))


def test_the_published_spelling_of_names_is_understood(
    problem: Callable[..., str | None], dense: Callable[[str], dict]
) -> None:
    for family in ("qwen3_5_moe", "gemma4"):
        renamed = {
            name.replace("language_model.model.", "model.language_model."): tensor
            for name, tensor in dense(family).items()
        }
        assert problem(family, renamed | {"vision_tower.x": ("BF16", (1,))}) is None


def test_quantised_weights_need_their_scales_and_a_scheme(
    problem: Callable[..., str | None], dense: Callable[[str], dict]
) -> None:
    tensors = dense("qwen3_moe")
    module = "model.layers.0.self_attn.q_proj"
    tensors[f"{module}.weight"] = ("U32", (128, 16))
    tensors |= {f"{module}.{part}": ("BF16", (128, 2)) for part in ("scales", "biases")}
    scheme = {"bits": 4, "group_size": 64}
    assert problem("qwen3_moe", tensors, quantization=scheme) is None
    assert "is [128, 16], but" in str(problem("qwen3_moe", tensors))
    assert problem("qwen3_moe", tensors, quantization=scheme | {module: {"bits": 8}}) is not None
    assert problem("qwen3_moe", tensors, quantization=scheme | {module: False}) is not None
    assert "lack" in str(
        problem("qwen3_moe", tensors, lambda others: others.pop(f"{module}.biases"), quantization=scheme)
    )
    with pytest.raises(ConfigError, match=r"quantization.group_size is missing"):
        problem("qwen3_moe", tensors, quantization={"bits": 4})
    assert "make an MLX checkpoint" in str(
        problem("qwen3_moe", tensors, quantization_config={"quant_method": "gptq"})
    )


def test_weights_must_lie_where_loading_looks(
    tmp_path: Path, problem: Callable[..., str | None], dense: Callable[[str], dict]
) -> None:
    def move(others: Others) -> None:
        for name, entry in others.items():
            others[name] = entry._replace(file="weights.safetensors")

    assert "weights.safetensors: weights are loaded from model*" in str(
        problem("gpt_oss", dense("gpt_oss"), move)
    )
    assert "model_file asks" in str(problem("gpt_oss", dense("gpt_oss"), model_file="x.py"))
    with pytest.raises(ConfigError, match="layer_types must hold"):
        problem("gpt_oss", {}, layer_types=["odd"])
