import mlx.core as mx
import numpy as np
import pytest

from mach.io.inspection import inspect_checkpoint
from mach.io.safetensors_header import read_headers
from mach_store.errors import PruneError
from mach_store.prune.other_tensors import other_tensors
from mach_store.prune.plan import KeepPlan, keep_all
from mach_store.safetensors_writer import OutputTensor, write_safetensors

DEEPSEEK = {
    "model_type": "deepseek_v4", "hidden_size": 8, "num_hidden_layers": 2, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 8,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [4, 4]},
}  # fmt: skip


def numbered(*shape: int) -> mx.array:
    return mx.arange(int(np.prod(shape)), dtype=mx.float32).reshape(shape)


def arrays(tensors: list[OutputTensor]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {t.name: (t.dtype, t.shape, b"".join(map(bytes, t.chunks))) for t in tensors}


def test_the_model_of_a_stacked_checkpoint_is_copied_byte_for_byte(checkpoints) -> None:
    inspection = inspect_checkpoint(checkpoints.stacked())
    others = other_tensors(inspection, keep_all(inspection.shape))
    assert others.aside == []
    assert others.dropped == {}
    entries = read_headers(checkpoints.engine())
    found = arrays(others.model)
    assert set(found) == set(entries)
    for name, (dtype, shape, data) in found.items():
        entry = entries[name]
        assert (dtype, shape) == (entry.dtype, entry.shape)
        with open(entry.file, "rb") as handle:
            handle.seek(entry.start)
            assert data == handle.read(entry.nbytes)


def test_router_rows_go_with_their_experts(checkpoints) -> None:
    inspection = inspect_checkpoint(checkpoints.stacked("qwen3_moe", "affine"))
    keep = KeepPlan(candidate_id="a", experts={0: (1, 2, 6), 1: (0, 4, 7)})
    tensors = {tensor.name: tensor for tensor in other_tensors(inspection, keep).model}
    whole = mx.load(str(checkpoints.stacked() / "model.safetensors"))
    for layer, kept in keep.experts.items():
        for part in ("weight", "scales", "biases"):
            name = f"model.layers.{layer}.mlp.gate.{part}"
            rows = whole[name][mx.array(kept)]
            assert tensors[name].shape == rows.shape
            raw = rows if part == "weight" else rows.view(mx.uint16)
            assert b"".join(tensors[name].chunks) == np.array(raw).tobytes()
    assert sum(t.shape != tuple(whole[n].shape) for n, t in tensors.items()) == 6


def test_multi_token_prediction_is_put_aside_and_towers_are_left_out(config, write_checkpoint) -> None:
    directory = write_checkpoint(
        config("qwen3_5_moe", "none"),
        {
            "model.language_model.norm.weight": numbered(64),
            "mtp.layers.0.mlp.gate.weight": numbered(8, 64),
            "mtp.layers.0.mlp.experts.gate_up_proj": numbered(8, 4, 4),
            "model.visual.blocks.0.attn.qkv.weight": numbered(6, 2),
            "model.visual.merger.norm.weight": numbered(3),
        },
    )
    inspection = inspect_checkpoint(directory)
    others = other_tensors(inspection, keep_all(inspection.shape))
    assert [tensor.name for tensor in others.model] == ["model.language_model.norm.weight"]
    assert sorted(tensor.name for tensor in others.aside) == [
        "mtp.layers.0.mlp.experts.gate_up_proj",
        "mtp.layers.0.mlp.gate.weight",
    ]
    assert others.dropped == {"visual.": 60}
    assert arrays(others.aside)["mtp.layers.0.mlp.gate.weight"][2] == np.array(numbered(8, 64)).tobytes()


@pytest.fixture
def deepseek(write_checkpoint):
    """A function (tensors) → inspection of a deepseek_v4 checkpoint of these alone."""

    def make(**tensors: tuple[str, np.ndarray]):
        directory = write_checkpoint(DEEPSEEK, {})
        outputs = [
            OutputTensor(
                name=name, dtype=dtype, shape=array.shape, nbytes=array.nbytes, chunks=[array.tobytes()]
            )
            for name, (dtype, array) in tensors.items()
        ]
        write_safetensors(str(directory / "model.safetensors"), outputs)
        return inspect_checkpoint(directory)

    return make


CODES = np.full((8, 8), 0x38, np.uint8)  # 1.0
SCALES = np.array([[127, 128], [129, 127]], np.uint8)  # 1, 2, 4, 1


def test_fp8_weights_become_bfloat16_and_lose_their_scales(deepseek) -> None:
    inspection = deepseek(**{
        "layers.0.attn.wq_a.weight": ("F8_E4M3", CODES),
        "layers.0.attn.wq_a.scale": ("F8_E8M0", SCALES),
        "mtp.0.attn.wq_a.weight": ("F8_E4M3", CODES),
        "mtp.0.attn.wq_a.scale": ("F8_E8M0", SCALES),
    })  # fmt: skip
    others = other_tensors(inspection, keep_all(inspection.shape))
    ((name, (dtype, shape, data)),) = arrays(others.model).items()
    assert (name, dtype, shape) == ("layers.0.attn.wq_a.weight", "BF16", (8, 8))
    values = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(8, 8)
    assert values.tolist() == np.kron([[1, 2], [4, 1]], np.ones((4, 4))).tolist()
    aside = arrays(others.aside)
    assert aside["mtp.0.attn.wq_a.weight"] == ("F8_E4M3", (8, 8), CODES.tobytes())
    assert aside["mtp.0.attn.wq_a.scale"] == ("F8_E8M0", (2, 2), SCALES.tobytes())


def test_an_fp8_weight_without_scales_is_refused(deepseek) -> None:
    inspection = deepseek(**{"layers.0.attn.wq_a.weight": ("F8_E4M3", CODES)})
    with pytest.raises(PruneError, match="wq_a.weight is F8_E4M3 without scales"):
        other_tensors(inspection, keep_all(inspection.shape))


def test_a_routing_table_holds_its_experts_and_gets_their_new_numbers(deepseek) -> None:
    table = np.array([[1, 3], [3, 2]], np.int64)
    inspection = deepseek(**{
        "layers.0.ffn.gate.tid2eid": ("I64", table),
        "layers.0.ffn.gate.weight": ("F32", np.arange(32, dtype=np.float32).reshape(4, 8)),
        "layers.1.ffn.gate.bias": ("F32", np.arange(4, dtype=np.float32)),
    })  # fmt: skip
    keep = KeepPlan(candidate_id="a", experts={0: (1, 2, 3), 1: (0, 1, 3)})
    found = arrays(other_tensors(inspection, keep).model)
    assert np.frombuffer(found["layers.0.ffn.gate.tid2eid"][2], np.int64).tolist() == [0, 2, 2, 1]
    assert found["layers.0.ffn.gate.weight"][1] == (3, 8)
    assert np.frombuffer(found["layers.1.ffn.gate.bias"][2], np.float32).tolist() == [0, 1, 3]
    lost = KeepPlan(candidate_id="a", experts={0: (0, 1, 2), 1: (0, 1, 3)})
    with pytest.raises(PruneError, match="layer 0 routes tokens by the table .* names expert 3"):
        other_tensors(inspection, lost)
    whole = arrays(other_tensors(inspection, keep_all(inspection.shape)).model)
    assert whole["layers.0.ffn.gate.tid2eid"][2] == table.tobytes()


def test_a_router_with_other_experts_than_config_json_is_refused(config, write_checkpoint) -> None:
    directory = write_checkpoint(
        config(quantization="none"), {"model.layers.1.mlp.gate.weight": numbered(7, 64)}
    )
    inspection = inspect_checkpoint(directory)
    with pytest.raises(PruneError, match=r"model.layers.1.mlp.gate.weight is \[7, 64\]"):
        other_tensors(inspection, keep_all(inspection.shape))
