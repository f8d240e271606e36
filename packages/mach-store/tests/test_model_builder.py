import mlx.core as mx
import mlx.nn as nn
import pytest

from mach.io.arch_registry import REGISTRY
from mach_store.errors import StoreError
from mach_store.model_builder import build_model, compute_dtype, swap_switch_mlp


class Nothing(nn.Module):
    """A replacement that computes nothing."""


def test_no_expert_tensor_is_loaded_and_everything_else_is(checkpoints) -> None:
    directory = checkpoints.stacked()
    model, config = build_model(directory, REGISTRY["qwen3_moe"], (0, 1), lambda _layer, _original: Nothing())
    names = [name for name, _ in nn.utils.tree_flatten(model.parameters())]
    assert not [name for name in names if "switch_mlp" in name]
    assert "model.layers.1.mlp.gate.weight" in names
    assert config["model_type"] == "qwen3_moe"


def test_weights_are_float32_on_the_cpu(checkpoints) -> None:
    assert compute_dtype() == mx.float32
    model, _ = build_model(
        checkpoints.engine(), REGISTRY["qwen3_moe"], (0, 1), lambda _layer, _original: Nothing()
    )
    assert model.model.norm.weight.dtype == mx.float32


@pytest.mark.parametrize("quantization", ["affine", "mxfp4", "none"])
@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4"])
def test_activations_begin_in_float32_on_the_cpu(checkpoints, family, quantization) -> None:
    directory = checkpoints.engine(family, quantization)
    layers = range(4 if family == "qwen3_5_moe" else 2)
    model, _ = build_model(directory, REGISTRY[family], layers, lambda _layer, _original: Nothing())
    embedding = getattr(model, "language_model", model).model.embed_tokens
    assert embedding(mx.array([[1, 2]])).dtype == mx.float32
    assert embedding.as_linear(mx.ones((1, 64))).shape == (1, 96)


def test_a_missing_weight_is_an_error_that_names_the_directory_and_the_tensor(
    checkpoints, copy_checkpoint
) -> None:
    directory = copy_checkpoint(checkpoints.engine())
    path = str(directory / "model.safetensors")
    tensors = dict(mx.load(path))
    mx.eval(tensors)
    del tensors["model.norm.weight"]
    mx.save_safetensors(path, tensors, {"format": "mlx"})
    with pytest.raises(
        StoreError, match=r"copy: the weights or config.json do not fit the model: (.|\n)*model.norm.weight"
    ):
        build_model(directory, REGISTRY["qwen3_moe"], (0, 1), lambda _layer, _original: Nothing())


def test_a_checkpoint_without_weights_is_an_error(checkpoints, copy_checkpoint) -> None:
    directory = copy_checkpoint(checkpoints.engine())
    (directory / "model.safetensors").unlink()
    with pytest.raises(StoreError, match="put them back"):
        build_model(directory, REGISTRY["qwen3_moe"], (0, 1), lambda _layer, _original: Nothing())


def test_a_family_without_a_model_is_refused(checkpoints) -> None:
    adapter = REGISTRY["qwen3_moe"]._replace(implementation=None)
    with pytest.raises(StoreError, match="qwen3_moe: this version of mach has no model"):
        build_model(checkpoints.engine(), adapter, (0,), lambda _layer, _original: Nothing())


def test_experts_that_are_not_where_the_registry_says_are_an_error() -> None:
    with pytest.raises(StoreError, match=r"no routed experts at model.layers.3.mlp.switch_mlp"):
        swap_switch_mlp(Nothing(), REGISTRY["qwen3_moe"], (3,), lambda _layer, _original: Nothing())
