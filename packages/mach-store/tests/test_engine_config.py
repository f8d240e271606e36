import copy

import pytest

from mach.errors import ConfigError
from mach.io.inspection import inspect_checkpoint
from mach.io.sidecar_layout import PROJECTIONS, Quantization, RecordSchema
from mach_store.errors import PruneError
from mach_store.prune.engine_config import engine_config

AFFINE4 = {"group_size": 32, "bits": 4, "mode": "affine"}
AFFINE8 = {"group_size": 64, "bits": 8, "mode": "affine"}
MXFP4 = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
BLOCK = "model.layers.{}.mlp.switch_mlp.{}"


def schemas(*layers: dict | None | tuple) -> dict[int, RecordSchema]:
    """A schema per layer, packed as given: all projections alike, or a tuple of three."""
    found = {}
    for index, layer in enumerate(layers):
        packing = layer if isinstance(layer, tuple) else (layer, layer, layer)
        gate, up, down = (None if q is None else Quantization(**q) for q in packing)
        found[index] = RecordSchema(segments=(), quantization=(gate, up, down))
    return found


@pytest.fixture
def inspection(config, write_checkpoint):
    """A function (family, packing's name, changes of the config) → inspection of just a config.json."""

    def make(family: str = "qwen3_moe", packed: str = "none", **changes: object):
        return inspect_checkpoint(write_checkpoint(config(family, packed) | changes, {}))

    return make


def test_keeping_everything_changes_nothing(inspection) -> None:
    found = inspection(packed="affine", quantization_config=AFFINE4, torch_dtype="bfloat16", x=[1e-6, None])
    before = copy.deepcopy(found.config.values)
    assert engine_config(found, schemas(AFFINE4, AFFINE4), 8) == before
    assert found.config.values == before


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4"])
def test_the_new_number_of_experts_is_what_the_family_reads(inspection, family) -> None:
    found = inspection(family, "affine")
    made = engine_config(found, schemas(*[AFFINE4] * found.shape.num_layers), 3)
    fields = made.get("text_config", made)
    name = "num_local_experts" if family == "gpt_oss" else "num_experts"
    assert fields[name] == 3
    before = copy.deepcopy(found.config.values)
    before.get("text_config", before)[name] = 3
    assert made == before


def test_every_spelling_of_the_number_is_rewritten_where_it_stands(inspection) -> None:
    found = inspection(num_local_experts=8, num_experts_per_tok=2)
    made = engine_config(found, schemas(None, None), 4)
    assert (made["num_experts"], made["num_local_experts"], made["num_experts_per_tok"]) == (4, 4, 2)
    assert list(made) == list(found.config.values)


def test_spellings_that_contradict_each_other_are_refused(inspection) -> None:
    found = inspection(num_local_experts=16)
    with pytest.raises(PruneError, match="num_local_experts is 16, but the layers have 8 experts"):
        engine_config(found, schemas(None, None), 4)
    assert engine_config(found, schemas(None, None), 8) == found.config.values


def test_what_is_packed_anew_is_said_in_mlxs_dialect(inspection) -> None:
    made = engine_config(inspection(), schemas(AFFINE8, AFFINE8), 8)
    assert made["quantization"] == AFFINE8


def test_plain_experts_of_a_plain_checkpoint_need_no_word(inspection) -> None:
    assert "quantization" not in engine_config(inspection(), schemas(None, None), 8)


def test_mixed_packing_is_said_per_module(inspection) -> None:
    made = engine_config(inspection(), schemas(AFFINE4, (AFFINE4, AFFINE4, AFFINE8), None), 8)
    assert made["quantization"] == AFFINE4 | {
        BLOCK.format(1, "down_proj"): AFFINE8,
        **{BLOCK.format(2, projection): False for projection in PROJECTIONS},
    }


@pytest.mark.parametrize("nested", [False, True])
def test_a_foreign_dialect_gives_way_to_mlxs(inspection, nested) -> None:
    foreign = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    if nested:
        found = inspection("qwen3_5_moe")
        found.config.values["text_config"]["quantization_config"] = foreign
    else:
        found = inspection(quantization_config=foreign)
    made = engine_config(found, schemas(None, None), 8)
    assert "quantization_config" not in made
    assert "quantization_config" not in made.get("text_config", {})
    assert "quantization" not in made


def test_the_published_mxfp4_becomes_mlxs(inspection) -> None:
    found = inspection("gpt_oss", quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": []})
    made = engine_config(found, schemas(MXFP4, MXFP4), 8)
    assert made["quantization"] == MXFP4
    assert "quantization_config" not in made


def test_experts_that_are_packed_unlike_the_rest_override_it(inspection) -> None:
    stated = AFFINE4 | {BLOCK.format(0, "up_proj"): AFFINE8, "lm_head": AFFINE8}
    found = inspection(quantization=stated, quantization_config=stated)
    made = engine_config(found, schemas((AFFINE4, AFFINE8, AFFINE4), AFFINE4), 8)
    assert made == found.config.values
    made = engine_config(found, schemas(MXFP4, None), 8)
    assert made["quantization"] == made["quantization_config"]
    assert made["quantization"]["lm_head"] == AFFINE8
    assert made["quantization"]["bits"] == 4
    for projection in PROJECTIONS:
        assert made["quantization"][BLOCK.format(0, projection)] == MXFP4
        assert made["quantization"][BLOCK.format(1, projection)] is False
    assert found.config.values["quantization"] == stated


def test_an_unknown_mode_is_refused(inspection) -> None:
    with pytest.raises(ConfigError, match="'nf4', none of"):
        inspection(quantization=AFFINE4 | {"mode": "nf4"})
