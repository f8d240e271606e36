"""Every key of the reference targets' checkpoints is claimed, and none is left over.

`key_lists/` holds the keys of published checkpoints as templates with ranges, with dtypes and shapes: facts,
not weights. Each list says what was read where, and what was derived.
"""

import itertools
import json
import math
from pathlib import Path

import pytest

from mach.errors import MachError
from mach.io.arch_registry import REGISTRY, adapter_for
from mach.io.config_file import ConfigFields
from mach.io.expert_names import ExpertTensorNames
from mach.io.exportable import export_problem
from mach.io.inspection import CheckpointInspection, inspect_tensors
from mach.io.model_tensors import model_tensors
from mach.io.safetensors_header import DTYPE_BITS, TensorEntry

DIRECTORY = Path(__file__).parent / "key_lists"
LISTS = sorted(path.stem for path in DIRECTORY.glob("*.json"))
LAYOUTS = {
    "deepseek-v4-flash": ("per_expert", "mxfp4 (4-bit)"),
    "gemma-4-26b-a4b-it": ("fused", "bf16"),
    "gpt-oss-20b": ("fused", "mxfp4 (4-bit)"),
    "mlx-gemma-4-26b-a4b-it-4bit": ("stacked", "affine (4-bit)"),
    "mlx-gpt-oss-20b-mxfp4-q8": ("stacked", "mxfp4 (4-bit)"),
    "mlx-qwen3-coder-30b-a3b-instruct-4bit": ("stacked", "affine (4-bit)"),
    "mlx-qwen3-coder-30b-a3b-instruct-nvfp4": ("stacked", "nvfp4 (4-bit)"),
    "mlx-qwen3.6-35b-a3b-8bit": ("stacked", "affine (8-bit)"),
    "qwen3-coder-30b-a3b-instruct": ("per_expert", "bf16"),
    "qwen3-coder-30b-a3b-instruct-fp8": ("per_expert", "fp8 (8-bit)"),
    "qwen3.5-35b-a3b": ("fused", "bf16"),
    "qwen3.6-35b-a3b": ("fused", "bf16"),
    "qwen3.6-35b-a3b-fp8": ("per_expert", "fp8 (8-bit)"),
}
UNUSED = {"deepseek-v4-flash": 1575, "qwen3.5-35b-a3b": 1118, "gemma-4-26b-a4b-it": 356}


def numbers(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found


def expand(template: str) -> list[str]:
    """Every name that a template with ranges in braces stands for."""
    first, *rest = template.split("{")
    if not rest:
        return [first]
    parts = [part.split("}") for part in rest]
    return [
        first + "".join(f"{n}{tail}" for n, (_, tail) in zip(chosen, parts, strict=True))
        for chosen in itertools.product(*(numbers(text) for text, _ in parts))
    ]


class KeyList:
    """One checkpoint's keys."""

    def __init__(self, name: str) -> None:
        document = json.loads((DIRECTORY / f"{name}.json").read_text())
        self.config: dict = document["config"]
        self.document = document
        self.tensors: dict[str, TensorEntry] = {}
        offset = 0
        for template, dtype, shape in document["tensors"]:
            size = DTYPE_BITS[dtype] * math.prod(shape) // 8
            for key in expand(template):
                assert key not in self.tensors, key
                self.tensors[key] = TensorEntry(dtype, tuple(shape), "model.bin", offset, offset + size)
                offset += size

    def inspect(self) -> CheckpointInspection:
        return inspect_tensors("/m", ConfigFields(self.config, "/m/config.json"), self.tensors, None)


def test_each_list_says_where_it_is_from() -> None:
    assert LISTS == sorted(LAYOUTS)
    for path in DIRECTORY.glob("*.json"):
        document = json.loads(path.read_text())
        assert path.stat().st_size < 100_000
        assert document["target"] and document["source"] and document["derived"]


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_as_large_as_the_checkpoint(name: str) -> None:
    keys = KeyList(name)
    assert len(keys.tensors) == keys.document["count"]
    if "total_bytes" in keys.document:
        assert sum(entry.nbytes for entry in keys.tensors.values()) == keys.document["total_bytes"]
    if "total_parameters" in keys.document:
        count = sum(math.prod(entry.shape) for entry in keys.tensors.values())
        assert count == keys.document["total_parameters"]


@pytest.mark.parametrize("name", LISTS)
def test_every_key_is_claimed_and_none_is_left_over(name: str) -> None:
    keys = KeyList(name)
    names = ExpertTensorNames(adapter_for(ConfigFields(keys.config, "config.json")))
    claims = {key: names.claim(key) for key in keys.tensors}
    assert [key for key, claim in claims.items() if claim == "unclaimed"] == []
    for key, claim in claims.items():
        if key.startswith("mtp.") or "vision" in key or "visual" in key:
            assert claim == "unused", key
        elif ".experts." in key or "switch_" in key:
            assert claim == "expert", key
        else:
            assert claim == "other", key
    if name in UNUSED:
        assert list(claims.values()).count("unused") == UNUSED[name]


@pytest.mark.parametrize("name", LISTS)
def test_every_expert_is_found_with_the_right_shape(name: str) -> None:
    keys = KeyList(name)
    found = keys.inspect()
    assert (found.layout, found.quantization.label) == LAYOUTS[name], found.layout_reason
    assert export_problem(found) is None


def problem_of(keys: KeyList) -> str | None:
    try:
        return export_problem(keys.inspect())
    except MachError as error:
        return str(error)


@pytest.mark.parametrize("name", [name for name in LISTS if LAYOUTS[name][0] != "per_expert"])
def test_no_experts_tensor_can_be_missed(name: str) -> None:
    keys = KeyList(name)
    names = ExpertTensorNames(adapter_for(ConfigFields(keys.config, "config.json")))
    experts = [key for key in keys.tensors if names.claim(key) == "expert"]
    for key in experts[:: -(-len(experts) // 5)]:
        entry = keys.tensors.pop(key)
        assert problem_of(keys) is not None, key
        keys.tensors[key] = entry
    assert problem_of(keys) is None


@pytest.mark.parametrize("model_type", sorted(REGISTRY))
def test_every_parameter_of_a_familys_model_is_known(model_type: str, families: dict[str, dict]) -> None:
    fields = ConfigFields(families[model_type], "config.json")
    adapter = adapter_for(fields)
    if adapter.implementation is None:
        return
    names = ExpertTensorNames(adapter)
    for name, _ in model_tensors(model_type, fields, adapter.text_config(fields), adapter.moe_shape(fields)):
        assert names.claim(name) == "other", name
        assert names.claim(f"{name}x") == "unclaimed"


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("qwen3_moe", "model.layers.0.mlp.experts.0.gate_proj.bias"),
        ("qwen3_moe", "model.layers.0.mlp.experts.0.gate_proj.qweight"),
        ("qwen3_moe", "model.layers.0.mlp.switch_mlp.gate_proj.bias"),
        ("qwen3_moe", "model.layers.0.mlp.switch_mlp.gate_proj.global_scale"),
        ("qwen3_moe", "visual.blocks.0.norm.weight"),
        ("gpt_oss", "model.layers.0.mlp.experts.gate_up_proj.weight"),
        ("gpt_oss", "model.layers.0.mlp.experts.gate_up_proj_zeros"),
        ("gemma4", "model.language_model.layers.0.router.bias"),
        ("deepseek_v4", "layers.0.ffn.experts.0.w4.weight"),
        ("qwen3_5_moe", "model.layers.0.linear_attn.A_logs"),
    ],
)
def test_what_a_family_has_not_is_unclaimed(model_type: str, name: str) -> None:
    assert ExpertTensorNames(REGISTRY[model_type]).claim(name) == "unclaimed"


@pytest.mark.parametrize(
    ("model_type", "name", "layout"),
    [
        ("deepseek_v4", "mtp.0.ffn.experts.7.w1.weight", None),
        ("qwen3_5_moe", "mtp.layers.0.mlp.experts.7.up_proj.weight", None),
        ("qwen3_5_moe", "mtp.layers.0.mlp.experts.gate_up_proj", None),
        ("deepseek_v4", "layers.3.ffn.experts.7.w3.scale", ("per_expert", 3, 7, "up_proj", "scale")),
        ("gpt_oss", "model.layers.2.mlp.experts.down_proj_bias", ("fused", 2, -1, "down_proj", "bias")),
        ("gpt_oss", "model.layers.2.mlp.experts.down_proj.bias", ("stacked", 2, -1, "down_proj", "bias")),
    ],
)
def test_places_are_read_from_names(model_type: str, name: str, layout: tuple | None) -> None:
    names = ExpertTensorNames(REGISTRY[model_type])
    place = names.place(name)
    assert (place and place[:5]) == layout
    assert names.claim(name) == ("unused" if layout is None else "expert")
