import mlx.core as mx
import numpy as np
import pytest

from mach.io.arch_registry import REGISTRY
from mach.io.safetensors_header import read_header
from mach_store.errors import PruneError
from mach_store.prune.expert_axis import (
    EXPERT_AXES,
    AxisPlace,
    ExpertAxisNames,
    kept_rows,
    renumbered,
    require_experts,
    require_named_kept,
)


@pytest.fixture
def stored(tmp_path):
    """A function (array) → the entry of a safetensors file that holds it."""

    def make(array):
        path = str(tmp_path / "x.safetensors")
        mx.save_safetensors(path, {"pad": mx.arange(3), "x": array})
        return read_header(path)["x"]

    return make


def test_every_family_has_its_table() -> None:
    assert set(EXPERT_AXES) == set(REGISTRY)


@pytest.mark.parametrize(
    ("family", "name", "place"),
    [
        ("qwen3_moe", "model.layers.7.mlp.gate.weight", AxisPlace("rows", 7)),
        ("qwen3_moe", "model.layers.7.mlp.gate.scales", AxisPlace("rows", 7)),
        ("qwen3_moe", "model.layers.7.mlp.gate_proj.weight", None),
        ("qwen3_moe", "layers.7.mlp.gate.weight", None),
        ("qwen3_5_moe", "model.language_model.layers.0.mlp.gate.weight", AxisPlace("rows", 0)),
        ("qwen3_5_moe", "language_model.model.layers.0.mlp.gate.biases", AxisPlace("rows", 0)),
        ("qwen3_5_moe", "language_model.model.layers.0.mlp.shared_expert_gate.weight", None),
        ("qwen3_5_moe", "mtp.layers.0.mlp.gate.weight", None),
        ("gpt_oss", "model.layers.12.mlp.router.bias", AxisPlace("rows", 12)),
        ("gemma4", "language_model.model.layers.3.router.proj.weight", AxisPlace("rows", 3)),
        ("gemma4", "model.language_model.layers.3.router.per_expert_scale", AxisPlace("rows", 3)),
        ("gemma4", "model.language_model.layers.3.router.scale", None),
        ("deepseek_v4", "layers.5.ffn.gate.weight", AxisPlace("rows", 5)),
        ("deepseek_v4", "layers.5.ffn.gate.bias", AxisPlace("rows", 5)),
        ("deepseek_v4", "layers.0.ffn.gate.tid2eid", AxisPlace("table", 0)),
        ("deepseek_v4", "model.layers.5.mlp.gate.e_score_correction_bias", AxisPlace("rows", 5)),
        ("deepseek_v4", "mtp.0.ffn.gate.weight", None),
    ],
)
def test_names_say_whether_a_tensor_counts_experts(family, name, place) -> None:
    assert ExpertAxisNames(REGISTRY[family]).place(name) == place


@pytest.mark.parametrize("kept", [(0,), (5,), (0, 1, 2), (1, 3, 4), (0, 2, 5), tuple(range(6))])
@pytest.mark.parametrize("shape", [(6,), (6, 5), (6, 2, 3)])
def test_kept_rows_are_the_slices_that_numpy_makes(stored, kept, shape) -> None:
    array = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    entry = stored(mx.array(array))
    assert b"".join(kept_rows(entry, kept)) == array[list(kept)].tobytes()


def test_a_first_axis_that_is_not_the_experts_is_refused(stored) -> None:
    require_experts("gate", stored(mx.zeros((6, 2))), 6)
    with pytest.raises(PruneError, match=r"gate is \[5, 2\], but config.json makes its first axis 6"):
        require_experts("gate", stored(mx.zeros((5, 2))), 6)
    with pytest.raises(PruneError, match="gate is"):
        require_experts("gate", stored(mx.array(1.0)), 6)


@pytest.mark.parametrize("dtype", [mx.int64, mx.int32, mx.uint16, mx.uint8])
def test_a_table_of_experts_gets_their_new_numbers(stored, dtype) -> None:
    entry = stored(mx.array([[1, 4], [4, 5], [1, 5]], dtype))
    require_named_kept("t", entry, (1, 4, 5), 6, 0)
    raw = b"".join(renumbered("t", entry, (1, 4, 5), 6, 0))
    new = np.frombuffer(raw, np.array(mx.zeros(1, dtype)).dtype)
    assert new.reshape(3, 2).tolist() == [[0, 1], [1, 2], [0, 2]]


def test_dropping_an_expert_that_a_table_names_is_refused(stored) -> None:
    entry = stored(mx.array([[1, 4], [4, 5]], mx.int64))
    with pytest.raises(
        PruneError, match=r"layer 2 routes tokens by the table t, which names expert 4.*\(2 such"
    ):
        require_named_kept("t", entry, (0, 1), 6, 2)


@pytest.mark.parametrize("bad", [[[0, 6]], [[-1, 0]]])
def test_a_table_that_names_experts_that_do_not_exist_is_refused(stored, bad) -> None:
    entry = stored(mx.array(bad, mx.int64))
    with pytest.raises(PruneError, match="layer 2: t names an expert outside 0 to 5"):
        require_named_kept("t", entry, range(6), 6, 2)


def test_a_table_of_floats_is_refused(stored) -> None:
    with pytest.raises(PruneError, match="F32, which is no table of expert numbers"):
        require_named_kept("t", stored(mx.zeros((2, 2))), range(6), 6, 2)
