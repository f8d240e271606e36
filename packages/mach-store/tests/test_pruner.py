import json
import os
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mach.errors import CheckpointError, HeaderError
from mach.io.inspection import inspect_checkpoint
from mach.io.safetensors_header import read_headers
from mach.io.sidecar_layout import Quantization, read_layout
from mach.preflight.gates import streaming_gate
from mach_store.errors import PlanError, PruneError, SidecarCorruptionError, SidecarExportError
from mach_store.prune import pruner
from mach_store.prune.output_directory import MARKER
from mach_store.prune.progress import Progress
from mach_store.prune.pruner import ASIDE_NAME, prune_checkpoint
from mach_store.sidecar.packing import Packing
from mach_store.sidecar.verification import verify_sidecar

FAMILIES = ["qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4"]


def tensor_bytes(directory: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    found = {}
    for name, entry in read_headers(directory).items():
        with open(entry.file, "rb") as handle:
            handle.seek(entry.start)
            found[name] = entry.dtype, entry.shape, handle.read(entry.nbytes)
    return found


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()
    }


@pytest.fixture
def write_plan(tmp_path):
    """A function (layer → experts to keep) → the path of a plan with one candidate, `a`."""

    def make(keep: dict[int, list[int]]) -> Path:
        path = tmp_path / "plan.jsonl"
        line = {"candidate_id": "a", "keep": {str(layer): experts for layer, experts in keep.items()}}
        path.write_text(json.dumps(line) + "\n")
        return path

    return make


@pytest.mark.parametrize("family", [*FAMILIES, "deepseek_v4"])
@pytest.mark.parametrize("quantization", ["affine", "mxfp4", "none"])
def test_slicing_a_stacked_checkpoint_gives_its_engine_form_back(
    checkpoints, tmp_path, family, quantization
) -> None:
    engine, stacked = checkpoints.engine(family, quantization), checkpoints.stacked(family, quantization)
    out = tmp_path / "out"
    report = prune_checkpoint(stacked, out, alignment=4096)
    assert inspect_checkpoint(out).layout == "sliced"
    assert (report.kept, report.num_experts, report.dropped) == (8, 8, {})
    for name in os.listdir(engine / "expert_sidecar"):
        written = (out / "expert_sidecar" / name).read_bytes()
        assert written == (engine / "expert_sidecar" / name).read_bytes()
    assert tensor_bytes(out) == tensor_bytes(engine)
    assert (out / "config.json").read_bytes() == (stacked / "config.json").read_bytes()
    inspection = inspect_checkpoint(out)
    assert streaming_gate(inspection.adapter, inspection).status == "ok"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["stacked", "engine"])
def test_a_plan_keeps_the_records_and_rows_of_its_experts(
    checkpoints, tmp_path, write_plan, family, layout
) -> None:
    source = getattr(checkpoints, layout)(family)
    inspection = inspect_checkpoint(source)
    keep = {layer: [(layer + i) % 8 for i in (0, 5, 3)] for layer in inspection.shape.moe_layers}
    out = tmp_path / "out"
    report = prune_checkpoint(source, out, plan=write_plan(keep), candidate_id="a", alignment=4096)
    assert (report.kept, report.num_experts) == (3, 8)
    engine = checkpoints.engine(family)
    for layer, whole in zip(
        read_layout(out / "expert_sidecar").layers,
        read_layout(engine / "expert_sidecar").layers,
        strict=True,
    ):
        assert layer.num_experts == 3
        assert layer.schema == whole.schema
        mine = (out / "expert_sidecar" / layer.file).read_bytes()
        theirs = (engine / "expert_sidecar" / layer.file).read_bytes()
        for place, expert in enumerate(sorted(keep[layer.index])):
            old = theirs[expert * whole.stride : (expert + 1) * whole.stride]
            assert mine[place * layer.stride : (place + 1) * layer.stride] == old
            assert layer.checksums[place] == whole.checksums[expert]
    made = inspect_checkpoint(out)
    assert made.shape == inspection.shape._replace(num_experts=3)
    assert streaming_gate(made.adapter, made).status == "ok"
    assert report.expert_bytes + report.other_bytes < inspection.other_bytes + 8 * sum(
        layer.schema.nbytes for layer in read_layout(engine / "expert_sidecar").layers
    )


def test_an_expert_that_a_hash_routed_layer_sends_tokens_to_cannot_be_dropped(
    checkpoints, tmp_path, write_plan
) -> None:
    source = checkpoints.engine("deepseek_v4")
    plan = write_plan(dict.fromkeys(inspect_checkpoint(source).shape.moe_layers, [0, 1, 2, 3, 4, 5, 6]))
    with pytest.raises(
        PruneError, match="layer 0 routes tokens by the table .* names expert 7, and the plan"
    ):
        prune_checkpoint(source, tmp_path / "out", plan=plan)
    assert os.listdir(tmp_path) == ["plan.jsonl"]


def test_an_engine_checkpoint_is_pruned_as_its_source_is(checkpoints, tmp_path, write_plan) -> None:
    first, second = {0: [1, 3, 5, 7], 1: [0, 2, 4, 6]}, {0: [0, 3], 1: [1, 2]}
    prune_checkpoint(checkpoints.stacked(), tmp_path / "half", plan=write_plan(first))
    prune_checkpoint(tmp_path / "half", tmp_path / "quarter", plan=write_plan(second))
    both = {layer: [first[layer][i] for i in second[layer]] for layer in first}
    prune_checkpoint(checkpoints.stacked(), tmp_path / "at once", plan=write_plan(both))
    quarter, once = contents(tmp_path / "quarter"), contents(tmp_path / "at once")
    assert quarter.pop(MARKER) != once.pop(MARKER)
    assert quarter == once


@pytest.mark.parametrize(
    ("packing", "q"),
    [
        (Packing(bits=4, group_size=None, mode=None), Quantization(mode="affine", bits=4, group_size=64)),
        (Packing(bits=8, group_size=32, mode="mxfp8"), Quantization(mode="mxfp8", bits=8, group_size=32)),
    ],
)
@pytest.mark.parametrize("layout", ["stacked", "engine"])
def test_plain_experts_are_packed_on_demand(checkpoints, tmp_path, layout, packing, q) -> None:
    source = getattr(checkpoints, layout)("qwen3_moe", "none")
    prune_checkpoint(source, tmp_path / "out", packing=packing)
    assert read_layout(tmp_path / "out" / "expert_sidecar").layers[1].schema.quantization == (q, q, q)
    stated = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    assert stated == {"mode": q.mode, "bits": q.bits, "group_size": q.group_size}
    made = inspect_checkpoint(tmp_path / "out")
    assert streaming_gate(made.adapter, made).status == "ok"


@pytest.mark.parametrize("layout", ["stacked", "engine"])
def test_packed_experts_are_not_packed_again(checkpoints, tmp_path, layout) -> None:
    source = getattr(checkpoints, layout)()
    with pytest.raises(SidecarExportError, match="already packed"):
        prune_checkpoint(source, tmp_path / "out", packing=Packing(bits=8, group_size=None, mode=None))
    prune_checkpoint(source, tmp_path / "out", packing=Packing(bits=4, group_size=None, mode=None))


@pytest.mark.parametrize(
    ("group_size", "message"),
    [(0, "--group-size 0: must be at least 1"), (-64, "at least 1"), (128, "give a smaller --group-size")],
)
def test_a_group_size_that_does_not_fit_is_refused_and_not_replaced(
    checkpoints, tmp_path, group_size, message
) -> None:
    source = checkpoints.stacked("qwen3_moe", "none")
    with pytest.raises(SidecarExportError, match=message):
        prune_checkpoint(
            source, tmp_path / "out", packing=Packing(bits=4, group_size=group_size, mode="affine")
        )
    assert not (tmp_path / "out").exists()


def test_a_large_model_is_written_in_shards_with_an_index(checkpoints, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pruner, "MAX_SHARD_BYTES", 10_000)
    prune_checkpoint(checkpoints.stacked(), tmp_path / "out")
    shards = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    assert tensor_bytes(tmp_path / "out") == tensor_bytes(checkpoints.engine())


def test_prediction_weights_are_kept_where_loading_does_not_meet_them(
    checkpoints, copy_checkpoint, tmp_path
) -> None:
    source = copy_checkpoint(checkpoints.stacked("qwen3_5_moe"))
    mtp = {"mtp.fc.weight": mx.arange(6.0), "mtp.layers.0.mlp.experts.0.up_proj.weight": mx.ones((2, 2))}
    tower = {"vision_tower.patch_embed.weight": mx.ones(5)}
    mx.save_safetensors(str(source / "model-mtp.safetensors"), mtp | tower)
    out = tmp_path / "out"
    report = prune_checkpoint(source, out)
    assert report.dropped == {"vision_tower": 20}
    assert set(mx.load(str(out / ASIDE_NAME))) == set(mtp)
    assert not ASIDE_NAME.startswith("model")
    assert not set(mtp) & set(mx.load(str(out / "model.safetensors")))
    made = inspect_checkpoint(out)
    assert set(mtp) <= set(made.tensors)
    assert made.unused_bytes == 24 + 16
    assert streaming_gate(made.adapter, made).status == "ok"
    prune_checkpoint(out, tmp_path / "again")
    assert set(mx.load(str(tmp_path / "again" / ASIDE_NAME))) == set(mtp)


def test_small_files_go_along(checkpoints, copy_checkpoint, tmp_path) -> None:
    source = copy_checkpoint(checkpoints.stacked())
    (source / "tokenizer.json").write_text("{}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool.jinja").write_text("x")
    (source / "pytorch_model.bin").write_text("x")
    prune_checkpoint(source, tmp_path / "out")
    found = set(contents(tmp_path / "out"))
    assert {"tokenizer.json", "additional_chat_templates/tool.jinja"} <= found
    assert "pytorch_model.bin" not in found


def test_the_same_command_again_does_nothing_and_another_is_refused(
    checkpoints, tmp_path, write_plan
) -> None:
    out = tmp_path / "out"
    assert not prune_checkpoint(checkpoints.stacked(), out).already_done
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    report = prune_checkpoint(checkpoints.stacked(), out)
    assert report.already_done
    assert report.kept == 8
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    plan = write_plan({0: [1, 2], 1: [3, 4]})
    with pytest.raises(PruneError, match="--overwrite"):
        prune_checkpoint(checkpoints.stacked(), out, plan=plan)
    prune_checkpoint(checkpoints.stacked(), out, plan=plan, overwrite=True)
    assert inspect_checkpoint(out).shape.num_experts == 2
    assert sorted(os.listdir(tmp_path)) == ["out", "plan.jsonl"]


def test_progress_reaches_the_announced_ends(checkpoints, tmp_path) -> None:
    seen: list[Progress] = []
    report = prune_checkpoint(checkpoints.stacked(), tmp_path / "out", listener=seen.append)
    assert [state.nbytes for state in seen] == sorted(state.nbytes for state in seen)
    total = report.expert_bytes + report.other_bytes
    assert seen[-1] == Progress(2, 2, total, total, 0)


def test_an_interrupted_run_is_taken_up(checkpoints, tmp_path) -> None:
    class Stop(Exception):
        pass

    def stop_after(count: int):
        def listener(progress: Progress) -> None:
            if progress.nbytes > count:
                raise Stop

        return listener

    whole = prune_checkpoint(checkpoints.stacked(), tmp_path / "whole")
    total = whole.expert_bytes + whole.other_bytes
    out = tmp_path / "out"
    for share in (0.3, 0.7, 0.95):
        with pytest.raises(Stop):
            prune_checkpoint(checkpoints.stacked(), out, listener=stop_after(int(share * total)))
        assert not out.exists()
    first = (tmp_path / "out.partial").stat().st_ino
    seen: list[Progress] = []
    prune_checkpoint(checkpoints.stacked(), out, listener=seen.append)
    assert (seen[0].layers, seen[0].taken_up) == (2, whole.expert_bytes), "both layers are taken up"
    assert out.stat().st_ino == first
    assert contents(out) == contents(tmp_path / "whole")


def test_a_source_that_changes_meanwhile_is_not_mixed(checkpoints, copy_checkpoint, tmp_path) -> None:
    source = copy_checkpoint(checkpoints.stacked())

    def touch(progress: Progress) -> None:
        os.utime(source / "model.safetensors", ns=(0, progress.nbytes))

    with pytest.raises(PruneError, match="changed while it was read"):
        prune_checkpoint(source, tmp_path / "out", listener=touch)
    assert not (tmp_path / "out").exists()


def test_a_disk_too_small_is_refused_with_the_numbers(checkpoints, tmp_path, monkeypatch) -> None:
    status = os.statvfs(tmp_path)

    class Small:
        f_bavail, f_frsize = 1_000_000 // status.f_frsize, status.f_frsize

    monkeypatch.setattr(os, "statvfs", lambda path: Small)
    with pytest.raises(PruneError, match=r"takes 0.07 GB, of which 0.00 GB .* only 0.00 GB are free"):
        prune_checkpoint(checkpoints.stacked(), tmp_path / "made" / "out")
    assert list((tmp_path / "made").iterdir()) == [], "nothing is left that somebody must clean up"


@pytest.mark.parametrize("where", ["source", "source/out", "source/deep/out", "."])
def test_an_output_in_or_around_the_source_is_refused(checkpoints, tmp_path, monkeypatch, where) -> None:
    shutil.copytree(checkpoints.stacked(), tmp_path / "source")
    os.symlink(tmp_path / "source", tmp_path / "link")
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    for path in (where, where.replace("source", "link")):
        with pytest.raises(PruneError, match="is the source, or inside it|holds the source"):
            prune_checkpoint(Path("source"), Path(path))
    assert contents(tmp_path) == before


def test_a_candidate_needs_a_plan_and_a_plan_a_fitting_candidate(checkpoints, tmp_path, write_plan) -> None:
    with pytest.raises(PruneError, match="give --plan too"):
        prune_checkpoint(checkpoints.stacked(), tmp_path / "out", candidate_id="a")
    plan = write_plan({0: [1, 2], 1: [3, 9]})
    with pytest.raises(PlanError, match="expert 9"):
        prune_checkpoint(checkpoints.stacked(), tmp_path / "out", plan=plan)
    with pytest.raises(PlanError, match="has no candidate 'b'"):
        prune_checkpoint(checkpoints.stacked(), tmp_path / "out", plan=plan, candidate_id="b")
    assert os.listdir(tmp_path) == ["plan.jsonl"]


def without(directory: Path, *names: str) -> None:
    """Take tensors out of a checkpoint's single file."""
    path = str(directory / "model.safetensors")
    kept = {name: array for name, array in mx.load(path).items() if name not in names}
    mx.eval(kept)
    mx.save_safetensors(path + ".new.safetensors", kept)
    os.rename(path + ".new.safetensors", path)


def test_a_source_that_would_not_load_is_refused_before_anything_is_written(
    checkpoints, copy_checkpoint, tmp_path
) -> None:
    source = copy_checkpoint(checkpoints.stacked())
    without(source, "model.norm.weight")
    with pytest.raises(PruneError, match="the weights lack model.norm.weight"):
        prune_checkpoint(source, tmp_path / "out")
    (source / "model-experts-00001.safetensors").unlink()
    with pytest.raises(SidecarExportError, match="layer 1 has no gate_proj"):
        prune_checkpoint(source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["copy"]


def test_a_missing_shard_is_named(checkpoints, copy_checkpoint, tmp_path) -> None:
    source = copy_checkpoint(checkpoints.stacked())
    index = {name: Path(entry.file).name for name, entry in read_headers(source).items()}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (source / "model-experts-00001.safetensors").unlink()
    with pytest.raises(HeaderError, match="model-experts-00001.safetensors: cannot be read"):
        prune_checkpoint(source, tmp_path / "out")


def test_an_expert_too_few_or_too_many_is_named(checkpoints, copy_checkpoint, tmp_path) -> None:
    source = copy_checkpoint(checkpoints.stacked("qwen3_moe", "none"))
    raw: dict[str, mx.array] = {}
    for path in sorted(source.glob("model-experts-*.safetensors")):
        for name, array in mx.load(str(path)).items():
            names = [name.replace("switch_mlp", f"experts.{expert}") for expert in range(9)]
            raw |= dict(zip(names, [*array, array[0]], strict=True))
        path.unlink()
    path = str(source / "model-experts.safetensors")
    mx.save_safetensors(path, raw)
    with pytest.raises(SidecarExportError, match="beyond config.json: layer 0, expert 8"):
        prune_checkpoint(source, tmp_path / "out")
    whole = {name: array for name, array in raw.items() if ".8." not in name}
    mx.save_safetensors(
        path, {name: array for name, array in whole.items() if "1.mlp.experts.5.up" not in name}
    )
    with pytest.raises(SidecarExportError, match="layer 1, expert 5 has no up_proj"):
        prune_checkpoint(source, tmp_path / "out")
    mx.save_safetensors(path, whole)
    prune_checkpoint(source, tmp_path / "out", alignment=4096)
    engine = checkpoints.engine("qwen3_moe", "none") / "expert_sidecar"
    for name in os.listdir(engine):
        assert (tmp_path / "out" / "expert_sidecar" / name).read_bytes() == (engine / name).read_bytes()


def test_an_unknown_way_of_quantising_is_refused(checkpoints, copy_checkpoint, tmp_path) -> None:
    source = copy_checkpoint(checkpoints.stacked())
    fields = json.loads((source / "config.json").read_text())
    for quantization in ({"mode": "nf4", "bits": 4, "group_size": 32}, {"bits": 7, "group_size": 32}):
        (source / "config.json").write_text(json.dumps(fields | {"quantization": quantization}))
        with pytest.raises(CheckpointError, match="'nf4', none of affine|bits is 7, none of"):
            prune_checkpoint(source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["copy"]


def test_experts_of_another_shape_are_refused(checkpoints, copy_checkpoint, tmp_path) -> None:
    source = copy_checkpoint(checkpoints.stacked())
    path = str(source / "model-experts-00001.safetensors")
    arrays = dict(mx.load(path))
    for cut, message in ((np.s_[:7], r"is \[7, "), (np.s_[:, :32], r"is \[8, 32, ")):
        changed = {name: array[cut] for name, array in arrays.items()}
        mx.eval(changed)
        mx.save_safetensors(path, changed)
        with pytest.raises(CheckpointError, match=message):
            prune_checkpoint(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_corrupt_record_of_an_engine_checkpoint_is_not_given_a_good_checksum(
    checkpoints, copy_checkpoint, tmp_path
) -> None:
    source = copy_checkpoint(checkpoints.engine())
    path = source / "expert_sidecar" / "layer_01.bin"
    raw = bytearray(path.read_bytes())
    raw[10] ^= 1
    path.write_bytes(raw)
    with pytest.raises(SidecarCorruptionError, match="layer 1, expert 0"):
        prune_checkpoint(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dense_model_has_nothing_to_slice(config, write_checkpoint, tmp_path) -> None:
    source = write_checkpoint(config("gemma4", "none"), {})
    fields = json.loads((source / "config.json").read_text())
    fields["text_config"]["enable_moe_block"] = False
    (source / "config.json").write_text(json.dumps(fields))
    with pytest.raises(PruneError, match="nothing to slice"):
        prune_checkpoint(source, tmp_path / "out")


def test_what_is_made_is_verified_whole(checkpoints, tmp_path) -> None:
    prune_checkpoint(checkpoints.stacked("gpt_oss", "mxfp4"), tmp_path / "out")
    assert verify_sidecar(str(tmp_path / "out" / "expert_sidecar")) == []
    marker = json.loads((tmp_path / "out" / MARKER).read_text())
    assert set(marker["files"]) == {"config.json", "model.safetensors"}
