import json

import mlx.core as mx
import pytest

from mach.io.inspection import inspect_checkpoint
from mach.io.raw_slices import slices_problem
from mach_store.bf16_form import Bf16Form
from mach_store.counters import LayerCounters
from mach_store.errors import StoreError
from mach_store.raw_source import RawSource


@pytest.fixture
def raw(config, tmp_path):
    """A function (layout) → a qwen3_moe checkpoint in two files, and its weights by layer and name."""

    def make(layout: str):
        fields = config("qwen3_moe", "none")
        experts, hidden, width = 8, fields["hidden_size"], fields["moe_intermediate_size"]
        shapes = {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}
        mx.random.seed(1)
        weights = {
            (layer, name): mx.random.normal((experts, *shape)).astype(mx.bfloat16)
            for layer in range(fields["num_hidden_layers"])
            for name, shape in shapes.items()
        }
        files: list[dict[str, mx.array]] = [{}, {}]
        for (layer, name), array in weights.items():
            block = f"model.layers.{layer}.mlp.experts"
            if layout == "per_expert":
                for expert in range(experts):
                    files[expert % 2][f"{block}.{expert}.{name}.weight"] = array[expert]
            elif name == "down_proj":
                files[0][f"{block}.down_proj"] = array
            elif name == "gate_proj":
                both = mx.concatenate([array, weights[layer, "up_proj"]], axis=1)
                files[1][f"{block}.gate_up_proj"] = both
        directory = tmp_path / layout
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(fields))
        for number, tensors in enumerate(files):
            mx.save_safetensors(str(directory / f"model-{number}.safetensors"), tensors)
        return directory, weights

    return make


@pytest.mark.parametrize("layout", ["per_expert", "fused"])
def test_every_expert_is_found_where_it_lies(raw, reader, layout) -> None:
    directory, weights = raw(layout)
    inspection = inspect_checkpoint(directory)
    assert (inspection.layout, slices_problem(inspection)) == (layout, None)
    source = RawSource(inspection)
    for layer, schema in source.schemas.items():
        arrays = Bf16Form(mx.float32, reader).bank(schema, 3)
        reader.read(arrays.plan, source, layer, [6, 1, 7], [2, 0, 1], LayerCounters())
        for name, parts in arrays.components.items():
            assert mx.array_equal(parts["weight"], weights[layer, name][mx.array([1, 7, 6])]), name
    assert source.path_of(0, 0, 3).endswith("model-1.safetensors")
    assert source.path_of(0, 2, 4).endswith("model-0.safetensors")
    source.close()


def test_a_file_that_cannot_be_opened_leaves_none_open(raw) -> None:
    directory, _ = raw("fused")
    inspection = inspect_checkpoint(directory)
    (directory / "model-1.safetensors").unlink()
    with pytest.raises(StoreError, match=r"model-1\.safetensors: cannot be opened"):
        RawSource(inspection)
