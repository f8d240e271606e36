import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mach.io.inspection import inspect_checkpoint
from mach_store.errors import SidecarExportError
from mach_store.safetensors_writer import OutputTensor, write_safetensors
from mach_store.sidecar.expert_records import open_records
from mach_store.sidecar.raw_records import MXFP4, RawRecords

LAYERS, EXPERTS, HIDDEN, WIDTH = 2, 3, 64, 32
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
Arrays = dict[str, tuple[str, np.ndarray]]
CONFIGS = {
    "qwen3_moe": {"num_experts": EXPERTS, "moe_intermediate_size": WIDTH},
    "qwen3_5_moe": {
        "text_config": {
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_experts": EXPERTS,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": WIDTH,
        }
    },
    "gpt_oss": {"num_local_experts": EXPERTS, "intermediate_size": WIDTH},
    "gemma4": {
        "text_config": {
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "enable_moe_block": True,
            "num_experts": EXPERTS,
            "top_k_experts": 2,
            "moe_intermediate_size": WIDTH,
        }
    },
    "deepseek_v4": {"n_routed_experts": EXPERTS, "moe_intermediate_size": WIDTH},
}


def make_config(family: str, **changes: object) -> dict[str, object]:
    """As much of a config.json as inspection needs."""
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_experts_per_tok": 2}
    return {"model_type": family, **sizes, **json.loads(json.dumps(CONFIGS[family])), **changes}


def write(directory: Path, fields: Mapping[str, object], tensors: Arrays) -> Path:
    """Write a checkpoint of any safetensors dtypes."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(fields))
    outputs = [
        OutputTensor(name=name, dtype=dtype, shape=array.shape, nbytes=array.nbytes, chunks=[array.tobytes()])
        for name, (dtype, array) in tensors.items()
    ]
    write_safetensors(str(directory / "model.safetensors"), outputs)
    return directory


def rows_and_columns(projection: str) -> tuple[int, int]:
    """Outputs and inputs of one expert's projection."""
    return (HIDDEN, WIDTH) if projection == "down_proj" else (WIDTH, HIDDEN)


def codes(seed: int, shape: tuple[int, ...], high: int = 256, dtype: type = np.uint8) -> np.ndarray:
    """Random integers below `high`."""
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def bf16(layer: int, expert: int, projection: str, extra: int = 0) -> np.ndarray:
    """One expert's plain weight: bfloat16 bit patterns of finite numbers."""
    seed = 1000 * layer + 10 * expert + PROJECTIONS.index(projection) + 100_000 * extra
    shape = rows_and_columns(projection) if not extra else rows_and_columns(projection)[:1]
    return codes(seed, shape, 0x3F80, np.uint16)


def fuse(gate: np.ndarray, up: np.ndarray, interleaving: str) -> np.ndarray:
    """Gate and up rows in one array."""
    if interleaving == "halves":
        return np.concatenate([gate, up])
    both = np.empty((2 * len(gate), *gate.shape[1:]), gate.dtype)
    both[0::2], both[1::2] = gate, up
    return both


FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def records_of(directory, layer: int, experts=None) -> list[dict[str, np.ndarray]]:
    """Each expert's segments by name, as bytes shaped like the segment."""
    source = open_records(inspect_checkpoint(directory), None)
    schema = source.schemas[layer]
    found = []
    for record in source.records(layer, experts):
        arrays = {}
        for segment, data in zip(schema.segments, record, strict=True):
            dtype = {"bfloat16": np.uint16, "float16": np.uint16}.get(segment.dtype, segment.dtype)
            arrays[segment.name] = np.frombuffer(data, dtype).reshape(segment.shape).copy()
        found.append(arrays)
    return found


def expect_plain(directory, weight=bf16, bias: bool = False) -> None:
    for layer in range(LAYERS):
        for expert, record in enumerate(records_of(directory, layer)):
            for projection in PROJECTIONS:
                expected = weight(layer, expert, projection)
                assert np.array_equal(record[f"{projection}.weight"], expected)
                if bias:
                    expected = bf16(layer, expert, projection, 1)
                    assert np.array_equal(record[f"{projection}.bias"], expected)
            assert len(record) == (6 if bias else 3)


EVERY = list(itertools.product(range(LAYERS), range(EXPERTS), PROJECTIONS))
PER_EXPERT = {
    "qwen3_moe": "model.layers.{}.mlp.experts.{}.{}.weight",
    "qwen3_5_moe": "model.language_model.layers.{}.mlp.experts.{}.{}.weight",
    "gpt_oss": "model.layers.{}.mlp.experts.{}.{}.weight",
    "gemma4": "model.language_model.layers.{}.experts.{}.{}.weight",
    "deepseek_v4": "layers.{}.ffn.experts.{}.{}.weight",
}
FUSED = {
    "qwen3_moe": "model.layers.{}.mlp.experts.{}",
    "qwen3_5_moe": "model.language_model.layers.{}.mlp.experts.{}",
    "gemma4": "model.language_model.layers.{}.experts.{}",
    "deepseek_v4": "model.layers.{}.mlp.experts.{}",
}
NUMBERED = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def per_expert_name(family: str, layer: int, expert: int, projection: str) -> str:
    spelled = NUMBERED[projection] if family == "deepseek_v4" else projection
    return PER_EXPERT[family].format(layer, expert, spelled)


@pytest.mark.parametrize("family", PER_EXPERT)
def test_per_expert_floats_keep_their_bytes(family, tmp_path) -> None:
    tensors = {per_expert_name(family, *e): ("BF16", bf16(*e)) for e in EVERY}
    if family == "gpt_oss":
        biases = {n.replace(".weight", ".bias"): e for n, e in zip(tensors, EVERY, strict=True)}
        tensors |= {name: ("BF16", bf16(*e, 1)) for name, e in biases.items()}
    expect_plain(write(tmp_path, make_config(family), tensors), bias=family == "gpt_oss")


@pytest.mark.parametrize("family", FUSED)
def test_fused_floats_are_parted_gate_first(family, tmp_path) -> None:
    tensors = {}
    for layer in range(LAYERS):
        both = [
            fuse(bf16(layer, e, "gate_proj"), bf16(layer, e, "up_proj"), "halves") for e in range(EXPERTS)
        ]
        down = [bf16(layer, e, "down_proj") for e in range(EXPERTS)]
        tensors[FUSED[family].format(layer, "gate_up_proj")] = ("BF16", np.stack(both))
        tensors[FUSED[family].format(layer, "down_proj")] = ("BF16", np.stack(down))
    expect_plain(write(tmp_path, make_config(family), tensors))


def gpt_oss_plain() -> Arrays:
    tensors: Arrays = {}
    for layer in range(LAYERS):
        path = f"model.layers.{layer}.mlp.experts"
        for extra, suffix in ((0, ""), (1, "_bias")):
            both, down = [], []
            for e in range(EXPERTS):
                gate, up = (bf16(layer, e, p, extra) for p in ("gate_proj", "up_proj"))
                both.append(fuse(gate, up, "rows").T)
                down.append(bf16(layer, e, "down_proj", extra).T)
            tensors[f"{path}.gate_up_proj{suffix}"] = ("BF16", np.stack(both))
            tensors[f"{path}.down_proj{suffix}"] = ("BF16", np.stack(down))
    return tensors


def test_transposed_interleaved_floats_are_turned_and_parted(tmp_path) -> None:
    tensors = gpt_oss_plain()
    assert tensors["model.layers.0.mlp.experts.gate_up_proj"][1].shape == (EXPERTS, HIDDEN, 2 * WIDTH)
    expect_plain(write(tmp_path, make_config("gpt_oss"), tensors), bias=True)


def gpt_oss_blocks() -> Arrays:
    tensors: Arrays = {}
    for layer in range(LAYERS):
        path = f"model.layers.{layer}.mlp.experts"
        for name, rows, columns in (("gate_up_proj", 2 * WIDTH, HIDDEN), ("down_proj", HIDDEN, WIDTH)):
            seed = 7 * layer + rows
            tensors[f"{path}.{name}_blocks"] = ("U8", codes(seed, (EXPERTS, rows, columns // 32, 16)))
            tensors[f"{path}.{name}_scales"] = (
                "U8",
                120 + codes(seed + 1, (EXPERTS, rows, columns // 32), 9),
            )
            tensors[f"{path}.{name}_bias"] = ("BF16", codes(seed + 2, (EXPERTS, rows), 0x3F80, np.uint16))
    return tensors


def fp4_matrix(packed: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """A row per output, decoded one number at a time: low four bits first, 32 to a power of two."""
    rows, width = packed.shape
    values = np.empty((rows, 2 * width), np.float64)
    for row, byte in itertools.product(range(rows), range(width)):
        for half, code in enumerate((packed[row, byte] & 0xF, packed[row, byte] >> 4)):
            sign = -1.0 if code & 8 else 1.0
            column = 2 * byte + half
            values[row, column] = sign * math.ldexp(
                FP4_VALUES[code & 7], int(scales[row, column // 32]) - 127
            )
    return values


def dequantized(record: dict[str, np.ndarray], projection: str) -> np.ndarray:
    weight, scales = (mx.array(record[f"{projection}.{c}"]) for c in ("weight", "scales"))
    values = mx.dequantize(weight, scales, group_size=32, bits=4, mode="mxfp4", dtype=mx.float32)
    return np.array(values).astype(np.float64)


def test_mxfp4_blocks_become_mlxs_with_gate_and_up_parted(tmp_path) -> None:
    tensors = gpt_oss_blocks()
    directory = write(tmp_path, make_config("gpt_oss"), tensors)
    source = RawRecords(inspect_checkpoint(directory))
    assert source.schemas[0].quantization == (MXFP4,) * 3
    for layer in range(LAYERS):
        found = records_of(directory, layer)
        for expert, record in enumerate(found):
            for projection in PROJECTIONS:
                name = "down_proj" if projection == "down_proj" else "gate_up_proj"
                rows = {"gate_proj": np.s_[0::2], "up_proj": np.s_[1::2], "down_proj": np.s_[:]}[projection]
                path = f"model.layers.{layer}.mlp.experts.{name}"
                blocks = tensors[f"{path}_blocks"][1][expert][rows]
                scales = tensors[f"{path}_scales"][1][expert][rows]
                expected = fp4_matrix(blocks.reshape(len(blocks), -1), scales)
                assert np.array_equal(dequantized(record, projection), expected)
                assert np.array_equal(record[f"{projection}.bias"], tensors[f"{path}_bias"][1][expert][rows])


def test_mxfp4_blocks_give_what_mlx_lm_makes_of_them(tmp_path) -> None:
    from mlx_lm.models import gpt_oss  # noqa: PLC0415

    tensors = gpt_oss_blocks()
    directory = write(tmp_path, make_config("gpt_oss"), tensors)
    given = {name: mx.array(array) for name, (_, array) in tensors.items()}
    made = gpt_oss.Model.sanitize(None, given)  # type: ignore[arg-type]
    for layer, expert, projection in EVERY:
        record = records_of(directory, layer, [expert])[0]
        for component in ("weight", "scales", "bias"):
            expected = np.array(made[f"model.layers.{layer}.mlp.experts.{projection}.{component}"])[expert]
            assert np.array_equal(record[f"{projection}.{component}"], expected)


@pytest.mark.parametrize("dtype", ["I8", "U8"])
def test_deepseeks_fp4_keeps_its_bytes_and_means_what_it_meant(dtype, tmp_path) -> None:
    tensors: Arrays = {"mtp.0.ffn.experts.0.w1.weight": (dtype, codes(1, (WIDTH, HIDDEN // 2)))}
    for seed, (layer, expert, projection) in enumerate(EVERY):
        rows, columns = rows_and_columns(projection)
        name = per_expert_name("deepseek_v4", layer, expert, projection)
        tensors[name] = (dtype, codes(seed, (rows, columns // 2)))
        scales = 120 + codes(seed + 100, (rows, columns // 32), 9)
        tensors[name.replace(".weight", ".scale")] = ("F8_E8M0", scales)
    fields = make_config("deepseek_v4", expert_dtype="fp4", quantization_config={"quant_method": "fp8"})
    directory = write(tmp_path, fields, tensors)
    for layer, expert, projection in EVERY:
        record = records_of(directory, layer, [expert])[0]
        name = per_expert_name("deepseek_v4", layer, expert, projection)
        packed, scales = tensors[name][1], tensors[name.replace(".weight", ".scale")][1]
        assert record[f"{projection}.weight"].tobytes() == packed.tobytes()
        assert np.array_equal(dequantized(record, projection), fp4_matrix(packed, scales))


def e4m3(code: int) -> float:
    sign, exponent, mantissa = (-1.0 if code & 0x80 else 1.0), (code >> 3) & 0xF, code & 7
    return sign * (math.ldexp(mantissa, -9) if exponent == 0 else math.ldexp(8 + mantissa, exponent - 10))


def exact_bfloat16(value: float) -> int:
    """Bit pattern of a number that bfloat16 has."""
    bits = int(np.float32(value).view(np.uint32))
    assert bits & 0xFFFF == 0
    return bits >> 16


FP8 = {"quant_method": "fp8", "weight_block_size": [16, 24]}


@pytest.mark.parametrize("scale_dtype", ["F32", "BF16", "F8_E8M0"])
@pytest.mark.parametrize("form", ["qwen3_moe", "qwen3_5_moe", "deepseek_v4", "qwen3_moe fused"])
def test_fp8_blocks_become_the_bfloat16_they_mean(form, scale_dtype, tmp_path) -> None:
    family, fused = form.split()[0], form.endswith("fused")
    fp8 = {p: codes(40 + i, (LAYERS, EXPERTS, *rows_and_columns(p)), 0x78) for i, p in enumerate(PROJECTIONS)}
    # Powers of two, so that the scalar decoding is exact in bfloat16.
    exponents = {
        p: 120 + codes(50 + i, (LAYERS, EXPERTS, math.ceil(rows / 16), math.ceil(columns / 24)), 9)
        for i, p in enumerate(PROJECTIONS)
        for rows, columns in [rows_and_columns(p)]
    }

    def stored(powers: np.ndarray) -> tuple[str, np.ndarray]:
        if scale_dtype == "F8_E8M0":
            return scale_dtype, powers
        bits = powers.astype(np.uint32) << 23
        if scale_dtype == "F32":
            return scale_dtype, bits.view(np.float32)
        return scale_dtype, (bits >> 16).astype(np.uint16)

    tensors: Arrays = {}
    if fused:
        for layer in range(LAYERS):
            path = f"model.layers.{layer}.mlp.experts"
            for name, parts in (("gate_up_proj", PROJECTIONS[:2]), ("down_proj", PROJECTIONS[2:])):
                weights = np.concatenate([fp8[p][layer] for p in parts], axis=1)
                powers = np.concatenate([exponents[p][layer] for p in parts], axis=1)
                tensors[f"{path}.{name}"] = ("F8_E4M3", weights)
                tensors[f"{path}.{name}_scale_inv"] = stored(powers)
    else:
        suffix = ".scale" if family == "deepseek_v4" else ".weight_scale_inv"
        for layer, expert, projection in EVERY:
            name = per_expert_name(family, layer, expert, projection)
            tensors[name] = ("F8_E4M3", fp8[projection][layer, expert])
            tensors[name.replace(".weight", suffix)] = stored(exponents[projection][layer, expert])
    directory = write(tmp_path, make_config(family, quantization_config=FP8), tensors)

    def weight(layer: int, expert: int, projection: str) -> np.ndarray:
        rows, columns = rows_and_columns(projection)
        decoded = np.empty((rows, columns), np.uint16)
        for r, c in itertools.product(range(rows), range(columns)):
            power = int(exponents[projection][layer, expert, r // 16, c // 24]) - 127
            decoded[r, c] = exact_bfloat16(math.ldexp(e4m3(int(fp8[projection][layer, expert, r, c])), power))
        return decoded

    expect_plain(directory, weight)


def test_layers_may_be_stored_differently(tmp_path) -> None:
    tensors: Arrays = {}
    for layer, expert, projection in EVERY:
        name = per_expert_name("qwen3_moe", layer, expert, projection)
        if layer == 0:
            tensors[name] = ("BF16", bf16(layer, expert, projection))
        else:
            rows, columns = rows_and_columns(projection)
            tensors[name] = ("F8_E4M3", codes(1, (rows, columns), 0x78))
            tensors[f"{name}_scale_inv"] = ("F32", np.ones((1, 1), np.float32))
    fields = make_config("qwen3_moe", quantization_config={"quant_method": "fp8"})
    directory = write(tmp_path, fields, tensors)
    source = open_records(inspect_checkpoint(directory), None)
    assert source.schemas[0] == source.schemas[1]
    assert np.array_equal(records_of(directory, 0)[2]["up_proj.weight"], bf16(0, 2, "up_proj"))


@pytest.mark.parametrize("form", ["per expert", "fused"])
def test_chosen_experts_come_in_the_order_asked_for(form, tmp_path) -> None:
    if form == "fused":
        directory = write(tmp_path, make_config("gpt_oss"), gpt_oss_plain())
    else:
        tensors = {per_expert_name("qwen3_moe", *e): ("BF16", bf16(*e)) for e in EVERY}
        directory = write(tmp_path, make_config("qwen3_moe"), tensors)
    found = records_of(directory, 1, [2, 0])
    for record, expert in zip(found, (2, 0), strict=True):
        assert np.array_equal(record["up_proj.weight"], bf16(1, expert, "up_proj"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scales_that_are_no_finite_numbers_are_refused(value, tmp_path) -> None:
    tensors: Arrays = {}
    for layer, expert, projection in EVERY:
        name = per_expert_name("qwen3_moe", layer, expert, projection)
        tensors[name] = ("F8_E4M3", codes(1, rows_and_columns(projection), 0x78))
        tensors[f"{name}_scale_inv"] = ("F32", np.ones((1, 1), np.float32))
    tensors["model.layers.1.mlp.experts.2.up_proj.weight_scale_inv"][1][0, 0] = value
    fields = make_config("qwen3_moe", quantization_config={"quant_method": "fp8"})
    directory = write(tmp_path, fields, tensors)
    assert len(records_of(directory, 0)) == EXPERTS
    with pytest.raises(SidecarExportError, match="layer 1, expert 2: the scales of up_proj"):
        records_of(directory, 1)


def test_a_file_that_was_cut_after_inspection_is_named(tmp_path) -> None:
    tensors = {per_expert_name("qwen3_moe", *e): ("BF16", bf16(*e)) for e in EVERY}
    directory = write(tmp_path, make_config("qwen3_moe"), tensors)
    source = open_records(inspect_checkpoint(directory), None)
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(SidecarExportError, match=r"model.safetensors: ends at byte"):
        list(source.records(1))
