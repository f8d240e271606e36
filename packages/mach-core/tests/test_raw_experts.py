import re
from collections.abc import Callable

import pytest

from mach.errors import ConfigError, UnsupportedLayoutError
from mach.io.config_file import ConfigFields
from mach.io.exportable import export_problem
from mach.io.inspection import CheckpointInspection, inspect_tensors
from mach.io.raw_experts import raw_experts
from mach.io.safetensors_header import DTYPE_BITS, TensorEntry

Tensors = dict[str, tuple[str, tuple[int, ...]]]
LAYERS, EXPERTS, HIDDEN, WIDTH = 2, 8, 128, 64
FP8 = {"quant_method": "fp8", "weight_block_size": [32, 48]}
BLOCKS = "model.layers.{}.mlp.experts.{}"


def inspection_of(config: dict, tensors: Tensors) -> CheckpointInspection:
    entries, offset = {}, 100
    for name, (dtype, shape) in tensors.items():
        size = DTYPE_BITS[dtype] // 8
        for extent in shape:
            size *= extent
        entries[name] = TensorEntry(dtype, shape, "/m/model.safetensors", offset, offset + size)
        offset += size
    return inspect_tensors("/m", ConfigFields(config, "/m/config.json"), entries, None)


def qwen3(dtype: str = "BF16", scale: str | None = None) -> Tensors:
    tensors: Tensors = {}
    for layer in range(LAYERS):
        for expert in range(EXPERTS):
            for projection in ("gate_proj", "up_proj", "down_proj"):
                shape = (HIDDEN, WIDTH) if projection == "down_proj" else (WIDTH, HIDDEN)
                name = f"model.layers.{layer}.mlp.experts.{expert}.{projection}.weight"
                tensors[name] = (dtype, shape)
                if scale is not None:
                    tensors[f"{name}_scale_inv"] = (scale, (-(-shape[0] // 32), -(-shape[1] // 48)))
    return tensors


def gpt_oss(packed: bool = True) -> Tensors:
    tensors: Tensors = {}
    for layer in range(LAYERS):
        for name, rows, columns in (("gate_up_proj", 256, 128), ("down_proj", 128, 128)):
            path = BLOCKS.format(layer, name)
            if packed:
                tensors[f"{path}_blocks"] = ("U8", (EXPERTS, rows, columns // 32, 16))
                tensors[f"{path}_scales"] = ("U8", (EXPERTS, rows, columns // 32))
            else:
                tensors[path] = ("BF16", (EXPERTS, columns, rows))
            tensors[f"{path}_bias"] = ("BF16", (EXPERTS, rows))
    return tensors


def test_an_experts_bytes_are_found_in_each_layout(families: dict[str, dict]) -> None:
    tensors = qwen3()
    found = raw_experts(inspection_of(families["qwen3_moe"], tensors))
    entry = inspection_of(families["qwen3_moe"], tensors).tensors[BLOCKS.format(1, 5) + ".up_proj.weight"]
    up = found.layers[1][1]
    assert (up.projection.holds, up.encoding, up.rows, up.columns) == (("up_proj",), "plain", 64, 128)
    assert up.parts["weight"].start(5) == (entry.file, entry.start)
    assert up.parts["weight"].nbytes == 64 * 128 * 2
    inspection = inspection_of(families["gpt_oss"], gpt_oss())
    both = raw_experts(inspection).layers[1][0]
    assert (both.projection.holds, both.encoding, both.rows) == (("gate_proj", "up_proj"), "fp4", 256)
    blocks = inspection.tensors[BLOCKS.format(1, "gate_up_proj_blocks")]
    assert both.parts["weight"].start(3) == (blocks.file, blocks.start + 3 * 256 * 64)
    assert both.parts["bias"].shape == (256,)


def test_the_form_follows_the_names_and_the_encoding_the_dtype(families: dict[str, dict]) -> None:
    plain = raw_experts(inspection_of(families["gpt_oss"], gpt_oss(packed=False)))
    assert (plain.form.axes, plain.form.interleaving) == ("in_out", "rows")
    assert plain.layers[0][1].encoding == "plain"
    config = families["qwen3_moe"] | {"quantization_config": FP8}
    fp8 = raw_experts(inspection_of(config, qwen3("F8_E4M3", "BF16"))).layers[0][2]
    assert (fp8.encoding, fp8.block, fp8.parts["scale"].shape) == ("fp8", (32, 48), (4, 2))


def without(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, dtype: str, *shape: int) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.__setitem__(name, (dtype, shape))


UP = BLOCKS.format(1, 5) + ".up_proj.weight"
BAD = {
    "a missing expert": (without(UP), "layer 1, expert 5 has no up_proj"),
    "an extra expert": (
        put(BLOCKS.format(1, 8) + ".up_proj.weight", "BF16", 64, 128),
        "experts beyond config.json: layer 1, expert 8, up_proj",
    ),
    "an extra layer": (
        put(BLOCKS.format(2, 0) + ".up_proj.weight", "BF16", 64, 128),
        "experts beyond config.json: layer 2, expert 0, up_proj",
    ),
    "a wrong shape": (
        put(UP, "BF16", 128, 64),
        rf"model.safetensors: layer 1, expert 5: {UP} is \[128, 64\], but config.json makes it \[64, 128\]",
    ),
    "a wrong dtype": (put(UP, "I32", 64, 128), f"layer 1, expert 5: {UP} is I32, not BF16"),
    "another dtype": (put(UP, "F16", 64, 128), f"layer 1, expert 5: {UP} is F16, not BF16"),
    "a scale beside floats": (put(f"{UP}_scale_inv", "F32", 2, 3), "_scale_inv stands beside plain BF16"),
    "a bias that the family has not": (put(UP.replace("weight", "bias"), "BF16", 64), "no raw form of qwen3"),
    "another packing": (put(UP.replace("weight", "qzeros"), "I32", 4, 4), "no raw form of qwen3_moe has it"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_wrong_tensor_is_named_with_file_layer_and_expert(families: dict[str, dict], bad: str) -> None:
    damage, message = BAD[bad]
    tensors = qwen3()
    assert export_problem(inspection_of(families["qwen3_moe"], tensors)) is None
    damage(tensors)
    problem = export_problem(inspection_of(families["qwen3_moe"], tensors))
    assert problem is not None
    assert re.search(message, problem), problem


SCALE = f"{UP}_scale_inv"
BAD_FP8 = {
    "a missing scale": (
        without(SCALE),
        rf"layer 1, expert 5: {UP} \(F8_E4M3\) has no scale: {SCALE} is missing",
    ),
    "a scale of another shape": (put(SCALE, "BF16", 1, 1), r"is \[1, 1\], but config.json makes it \[2, 3\]"),
    "a scale of another dtype": (put(SCALE, "I8", 2, 3), f"{SCALE} is I8, not"),
}


@pytest.mark.parametrize("bad", BAD_FP8)
def test_a_wrong_scale_is_named(families: dict[str, dict], bad: str) -> None:
    damage, message = BAD_FP8[bad]
    config = families["qwen3_moe"] | {"quantization_config": FP8}
    tensors = qwen3("F8_E4M3", "BF16")
    assert export_problem(inspection_of(config, tensors)) is None
    damage(tensors)
    with pytest.raises(UnsupportedLayoutError, match=message):
        raw_experts(inspection_of(config, tensors))


GATE_UP = BLOCKS.format(1, "gate_up_proj")
BAD_BLOCKS = {
    "no bias": (without(f"{GATE_UP}_bias"), "has no bias: .*gate_up_proj_bias is missing"),
    "no scales": (without(f"{GATE_UP}_scales"), "has no scale: .*gate_up_proj_scales is missing"),
    "one expert too few": (put(f"{GATE_UP}_blocks", "U8", 7, 256, 4, 16), r"is \[7, 256, 4, 16\], but"),
    "float blocks": (put(f"{GATE_UP}_blocks", "BF16", 8, 256, 4, 16), "is BF16, not I8 or U8"),
    "an unpacked projection beside": (put(GATE_UP, "BF16", 8, 128, 256), "another raw form than the others"),
}


@pytest.mark.parametrize("bad", BAD_BLOCKS)
def test_wrong_blocks_are_named(families: dict[str, dict], bad: str) -> None:
    damage, message = BAD_BLOCKS[bad]
    tensors = gpt_oss()
    assert export_problem(inspection_of(families["gpt_oss"], tensors)) is None
    damage(tensors)
    with pytest.raises(UnsupportedLayoutError, match=message):
        raw_experts(inspection_of(families["gpt_oss"], tensors))


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes", "compressed-tensors"])
def test_an_unknown_method_is_refused_by_name(families: dict[str, dict], method: str) -> None:
    config = families["qwen3_moe"] | {"quantization_config": {"quant_method": method}}
    problem = export_problem(inspection_of(config, qwen3()))
    assert problem is not None and f"{method} experts are not read" in problem


def test_a_malformed_block_size_is_a_config_error(families: dict[str, dict]) -> None:
    config = families["qwen3_moe"] | {
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [4]}
    }
    with pytest.raises(ConfigError, match="weight_block_size"):
        export_problem(inspection_of(config, qwen3("F8_E4M3", "BF16")))
