import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mach.io.arch_registry import REGISTRY
from mach.io.inspection import inspect_checkpoint
from mach.preflight.draft_probe import DraftProbe
from mach.preflight.gates import (
    ENGINE_PATHS,
    STATUSES,
    resident_gate,
    specdec_gate,
    streaming_gate,
    unswapped_gate,
)
from mach.preflight.path_matrix import PATHS, architecture_matrix, judge_paths

# The CLI page's matrix, cell for cell.
PAGE = """
path                deepseek_v4    gemma4  gpt_oss qwen3_5_moe    qwen3_moe
openai_http         ok             ok      ok      ok             ok
expert_streaming    ok             ok      ok      ok             ok
resident_stacked    blocked        unknown unknown unknown        unknown
bf16_streaming      unknown        unknown unknown unknown        unknown
gguf_experts_2bit   unknown        unknown unknown unknown        unknown
specdec             needs_artifact n/a     n/a     needs_artifact needs_artifact
continuous_batching blocked        unknown unknown ok             ok
turboquant_kv       ok             ok      ok      ok             ok
prefix_kv_reuse     unknown        unknown unknown ok             ok
native_tool_grammar n/a            n/a     n/a     ok             ok
"""


def test_the_matrix_is_the_pages_cell_for_cell() -> None:
    header, *rows = [line.split() for line in PAGE.strip().splitlines()]
    expected = {
        name: {row[0]: row[column] for row in rows} for column, name in enumerate(header) if column > 0
    }
    found = {
        name: {path: verdict.status for path, verdict in verdicts.items()}
        for name, verdicts in architecture_matrix().items()
    }
    assert found == expected
    assert list(found) == header[1:]
    assert tuple(row[0] for row in rows) == PATHS


@pytest.mark.parametrize("model_type", [m for m in REGISTRY if m != "deepseek_v4"])
def test_a_stacked_checkpoint_streams_and_stays_resident(
    model_type: str,
    families: dict[str, dict],
    make_checkpoint: Callable[..., Path],
    stacked: Callable[..., dict],
) -> None:
    config = families[model_type]
    found = inspect_checkpoint(make_checkpoint(config, stacked(config)))
    verdicts = judge_paths(found.adapter, found)
    assert [verdicts[path].status for path in PATHS[:4]] == ["ok"] * 4
    assert verdicts["bf16_streaming"].reason == "stacked layout supports bf16 streaming"
    assert "lazy per-expert slices" in verdicts["expert_streaming"].reason
    assert all(verdict.status in STATUSES and verdict.reason for verdict in verdicts.values())


def test_what_the_engine_lacks_is_blocked_for_every_checkpoint(
    families: dict[str, dict], make_checkpoint: Callable[..., Path], stacked: Callable[..., dict]
) -> None:
    for model_type, config in families.items():
        found = inspect_checkpoint(make_checkpoint(config, stacked(config), name=model_type))
        for path, verdict in judge_paths(found.adapter, found).items():
            if path not in ENGINE_PATHS:
                assert verdict.status in ("blocked", "n/a"), (model_type, path)


def test_deepseek_v4_needs_the_engine_layout(
    families: dict[str, dict], make_checkpoint: Callable[..., Path], stacked: Callable[..., dict]
) -> None:
    config = families["deepseek_v4"]
    found = inspect_checkpoint(make_checkpoint(config, stacked(config)))
    verdicts = judge_paths(found.adapter, found)
    statuses = [verdicts[path].status for path in PATHS[:4]]
    assert statuses == ["needs_artifact", "needs_artifact", "blocked", "blocked"]
    assert "mach-prune --source" in verdicts["expert_streaming"].reason
    assert "cannot load a stacked layout" in verdicts["resident_stacked"].reason


def test_an_architecture_without_a_model_cannot_be_loaded_in_any_residency(
    families: dict[str, dict], make_checkpoint: Callable[..., Path], stacked: Callable[..., dict]
) -> None:
    config = families["qwen3_moe"]
    found = inspect_checkpoint(make_checkpoint(config, stacked(config)))
    verdicts = judge_paths(found.adapter._replace(implementation=None), found)
    assert [verdicts[path].status for path in PATHS[:3]] == ["blocked"] * 3
    assert "no model for qwen3_moe yet" in verdicts["openai_http"].reason


def test_plain_raw_experts_need_a_sidecar_and_packed_ones_a_conversion(
    families: dict[str, dict], make_checkpoint: Callable[..., Path], per_expert: Callable[..., dict]
) -> None:
    config = families["qwen3_moe"]
    plain = inspect_checkpoint(make_checkpoint(config, per_expert(config), name="plain"))
    verdict = streaming_gate(plain.adapter, plain)
    assert (verdict.status, "mach-prune --source" in verdict.reason) == ("needs_artifact", True)
    resident = resident_gate(plain.adapter, plain)
    assert (resident.status, "mach-prune --source" in resident.reason) == ("blocked", True)
    generic = judge_paths(plain.adapter, plain)["openai_http"]
    assert (generic.status, "LME_BF16_STACKED_STREAMING=1" in generic.reason) == ("ok", True)
    packed = config | {"quantization_config": {"quant_method": "awq"}}
    awq = inspect_checkpoint(make_checkpoint(packed, per_expert(config), name="awq"))
    verdict = streaming_gate(awq.adapter, awq)
    assert (verdict.status, "awq experts are not read" in verdict.reason) == ("blocked", True)
    assert unswapped_gate(awq.adapter, awq).status == "unknown"
    assert "mach-prune" not in resident_gate(awq.adapter, awq).reason
    assert judge_paths(awq.adapter, awq)["openai_http"].status == "blocked"


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("model.norm.weight", None, "the weights lack model.norm.weight"),
        ("model.odd.weight", ("BF16", (2,)), "none of this model's"),
    ],
)
def test_what_mach_prune_would_refuse_is_not_recommended_to_it(
    name: str,
    change: tuple | None,
    reason: str,
    families: dict[str, dict],
    make_checkpoint: Callable[..., Path],
    per_expert: Callable[..., dict],
) -> None:
    tensors = per_expert(families["qwen3_moe"])
    tensors.pop(name, None)
    if change is not None:
        tensors[name] = change
    found = inspect_checkpoint(make_checkpoint(families["qwen3_moe"], tensors))
    verdict = streaming_gate(found.adapter, found)
    assert (verdict.status, reason in verdict.reason) == ("blocked", True), verdict


def test_a_raw_expert_of_another_shape_is_not_promised_to_mlx_lm(
    families: dict[str, dict], make_checkpoint: Callable[..., Path], per_expert: Callable[..., dict]
) -> None:
    tensors = per_expert(families["qwen3_moe"])
    name = next(name for name in tensors if name.endswith("experts.5.up_proj.weight"))
    dtype, (rows, columns) = tensors[name]
    tensors[name] = dtype, (rows // 2, columns * 2)
    found = inspect_checkpoint(make_checkpoint(families["qwen3_moe"], tensors))
    assert unswapped_gate(found.adapter, found).status == "unknown"


def test_a_broken_sidecar_blocks_streaming_and_says_why(
    families: dict[str, dict], make_checkpoint: Callable[..., Path], stacked: Callable[..., dict]
) -> None:
    config = families["qwen3_moe"]
    directory = make_checkpoint(config, stacked(config))
    (directory / "expert_sidecar").mkdir()
    (directory / "expert_sidecar" / "layout.json").write_text(json.dumps({"magic": "nonsense"}))
    found = inspect_checkpoint(directory)
    verdict = streaming_gate(found.adapter, found)
    assert verdict.status == "blocked"
    assert "magic" in verdict.reason
    assert resident_gate(found.adapter, found).status == "ok"


def test_dense_models_and_missing_experts_are_blocked(
    families: dict[str, dict], make_checkpoint: Callable[..., Path]
) -> None:
    dense = make_checkpoint(families["qwen3_moe"] | {"num_experts": 0}, {}, name="dense")
    found = inspect_checkpoint(dense)
    assert "no routed experts" in streaming_gate(found.adapter, found).reason
    empty = inspect_checkpoint(make_checkpoint(families["qwen3_moe"], {}, name="empty"))
    assert streaming_gate(empty.adapter, empty).status == "blocked"


def test_a_usable_draft_turns_specdec_on_where_the_architecture_has_one() -> None:
    good, bad = DraftProbe("d", True, "fits", 1), DraftProbe("d", False, "no config", 0)
    assert specdec_gate(REGISTRY["qwen3_moe"], None, good).status == "ok"
    assert specdec_gate(REGISTRY["qwen3_moe"], None, bad).reason == "--draft-dir is not usable: no config"
    assert specdec_gate(REGISTRY["gemma4"], None, good).status == "n/a"
