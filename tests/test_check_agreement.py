"""`mach check` says of a checkpoint what loading it then does, for every family, layout and quantisation."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest

from mach.errors import MachError
from mach.io.checkpoint_path import resolve_checkpoint
from mach.io.inspection import inspect_checkpoint
from mach.preflight.check_report import CheckOptions, check_report
from mach.settings import CoreSettings
from mach_decode.loader import load_streaming_or_stacked
from mach_server import serve_command
from mach_store.engine_checkpoint import write_stacked_checkpoint
from mach_store.sidecar.export import export_sidecar
from mach_store.synthetic_checkpoint import write_synthetic_checkpoint

CONFIGS = Path(__file__).parent / "configs"
NOT_SERVED = {
    "bf16_streaming": ["--expert-residency", "bf16_streaming"],
    "specdec": ["--draft-dir", "draft"],
    "continuous_batching": ["--continuous-batching"],
    "turboquant_kv": ["--turboquant-kv"],
    "prefix_kv_reuse": ["--prefix-cache"],
}
"""Paths that this version does not have → how a user would ask mach-serve for them."""
FAMILIES = ("qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4")
PACKINGS = {
    "bf16": None,
    "affine 4-bit": {"mode": "affine", "bits": 4, "group_size": 64},
    "affine 8-bit": {"mode": "affine", "bits": 8, "group_size": 32},
    "mxfp4": {"mode": "mxfp4", "bits": 4, "group_size": 32},
}


def outcomes(directory: Path, budget: float | None = None) -> dict[str, bool]:
    """Whether each residency loads."""
    result = {}
    for path, residency in (("expert_streaming", "streaming"), ("resident_stacked", "stacked")):
        gigabytes = budget if residency == "streaming" else None
        try:
            loaded = load_streaming_or_stacked(
                str(directory), expert_residency=residency, expert_cache_gb=gigabytes
            )
        except MachError as error:
            print(path, error)
            result[path] = False
        else:
            loaded.store.close()
            result[path] = True
    return result


def check(directory: Path, tmp_path: Path, budget: float | None = None) -> dict:
    """What `mach check --json` prints."""
    settings = CoreSettings(cache_root=str(tmp_path / "cache"))
    return check_report(str(directory), CheckOptions(expert_cache_gb=budget, local_only=True), settings)


def agree(directory: Path, tmp_path: Path, budget: float | None = None) -> dict:
    """The report, after comparing it with what loading and serving do."""
    report = check(directory, tmp_path, budget)
    said = {row["path"]: row["status"] == "ok" for row in report["paths"]}
    done = outcomes(directory, budget)
    assert {path: said[path] for path in done} == done, report["paths"]
    assert not any(said[path] for path in NOT_SERVED), "the server has no flag for these"
    assert report["supported"] == any(done.values()) == said["openai_http"]
    if report["supported"]:
        words = report["serve_command"].split()
        assert words[0] == "mach-serve"
        serve_command._parse(words[1:])
        assert done["expert_streaming" if "--streaming" in words else "resident_stacked"]
    return report


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_check_agrees_with_loading(family: str, packing: str, tmp_path: Path) -> None:
    config = json.loads((CONFIGS / f"{family}.json").read_text())
    if PACKINGS[packing] is not None:
        config["quantization"] = PACKINGS[packing]
    sliced, stacked = tmp_path / "sliced", tmp_path / "stacked"
    write_synthetic_checkpoint(sliced, config, tokenizer_from=resolve_checkpoint("mach-pico"))
    report = agree(sliced, tmp_path)
    assert (report["layout"]["kind"], report["supported"]) == ("sliced", True)
    write_stacked_checkpoint(sliced, stacked)
    report = agree(stacked, tmp_path)
    assert (report["layout"]["kind"], report["supported"]) == ("stacked", True)
    agree(stacked, tmp_path, budget=1e-9)
    agree(sliced, tmp_path, budget=1e5)
    layer = next((sliced / "expert_sidecar").glob("layer_*.bin"))
    layer.write_bytes(layer.read_bytes()[:-1])
    report = agree(sliced, tmp_path)
    assert not report["supported"]
    (sliced / "expert_sidecar" / "layout.json").unlink()
    assert inspect_checkpoint(sliced).layout == "unknown"
    agree(sliced, tmp_path)


def raw_checkpoint(directory: Path, config: dict, fused: bool) -> None:
    """A checkpoint as published: bfloat16 experts one by one, or with gate and up in one tensor."""
    hidden, width = config["hidden_size"], config["moe_intermediate_size"]
    experts, layers = config["num_experts"], config["num_hidden_layers"]
    tensors = {"model.norm.weight": mx.zeros((hidden,), mx.bfloat16)}
    for layer in range(layers):
        block = f"model.layers.{layer}.mlp.experts"
        if fused:
            tensors[f"{block}.gate_up_proj"] = mx.zeros((experts, 2 * width, hidden), mx.bfloat16)
            tensors[f"{block}.down_proj"] = mx.zeros((experts, hidden, width), mx.bfloat16)
            continue
        for expert in range(experts):
            for name, shape in {
                "gate_proj": (width, hidden),
                "up_proj": (width, hidden),
                "down_proj": (hidden, width),
            }.items():
                tensors[f"{block}.{expert}.{name}.weight"] = mx.zeros(shape, mx.bfloat16)
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(directory / "model.safetensors"), tensors)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(resolve_checkpoint("mach-pico") / name, directory / name)


@pytest.mark.parametrize("fused", [False, True], ids=["per expert", "fused"])
def test_check_agrees_with_loading_raw_checkpoints(fused: bool, tmp_path: Path) -> None:
    config = json.loads((CONFIGS / "qwen3_moe.json").read_text())
    raw_checkpoint(tmp_path / "raw", config, fused)
    report = agree(tmp_path / "raw", tmp_path)
    assert (report["layout"]["kind"], report["supported"]) == ("fused" if fused else "per_expert", False)
    if not fused:
        streaming = next(row for row in report["paths"] if row["path"] == "expert_streaming")
        assert streaming["status"] == "needs_artifact"
        export_sidecar(tmp_path / "raw", tmp_path / "raw" / "expert_sidecar", bits=4)
        assert check(tmp_path / "raw", tmp_path)["supported"], "an exported sidecar makes it servable"


def test_check_agrees_with_loading_deepseek_v4_which_this_version_does_not_have(tmp_path: Path) -> None:
    config = json.loads((CONFIGS / "qwen3_moe.json").read_text())
    raw_checkpoint(tmp_path / "raw", config, fused=False)
    experts = config.pop("num_experts")
    config |= {"model_type": "deepseek_v4", "n_routed_experts": experts, "qk_rope_head_dim": 16}
    (tmp_path / "raw" / "config.json").write_text(json.dumps(config))
    report = agree(tmp_path / "raw", tmp_path)
    assert not report["supported"]
    assert "no model for deepseek_v4" in report["paths"][0]["reason"]


@pytest.mark.parametrize("path", NOT_SERVED)
def test_the_server_refuses_what_check_calls_blocked(path: str) -> None:
    with pytest.raises(SystemExit) as refusal:
        serve_command._parse(["mach-pico", "--streaming", *NOT_SERVED[path]])
    assert refusal.value.code == 2
