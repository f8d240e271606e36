"""kill -9 at any moment of a sidecar export leaves the old or the new one, whole; a rerun finishes."""

import os
import signal
from pathlib import Path

import pytest
from kill_moment import run_until

from mach_store.engine_checkpoint import write_stacked_checkpoint
from mach_store.errors import SidecarExportError
from mach_store.sidecar.export import export_sidecar
from mach_store.sidecar.verification import verify_sidecar
from mach_store.synthetic_checkpoint import write_synthetic_checkpoint

CONFIG = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 64,
    "rms_norm_eps": 1e-6,
    "vocab_size": 64,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "max_position_embeddings": 64,
    "norm_topk_prob": True,
    "quantization": {"mode": "affine", "bits": 4, "group_size": 32},
}

EXPORT = """
from mach_store.sidecar.export import export_sidecar
export_sidecar(source, Path(output))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    write_synthetic_checkpoint(root / "engine", CONFIG, seed=1)
    write_stacked_checkpoint(root / "engine", root / "stacked")
    return root / "stacked"


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("other")
    write_synthetic_checkpoint(root / "engine", CONFIG | {"num_hidden_layers": 3}, seed=2)
    write_stacked_checkpoint(root / "engine", root / "stacked")
    return root / "stacked"


def contents(directory: Path) -> dict[str, bytes] | None:
    if not directory.exists():
        return None
    return {name: (directory / name).read_bytes() for name in sorted(os.listdir(directory))}


@pytest.mark.parametrize("replaces", [False, True], ids=["first export", "over an old sidecar"])
def test_a_kill_at_any_moment_leaves_old_or_new_and_a_rerun_finishes(
    tmp_path, checkpoint, other_checkpoint, replaces
) -> None:
    def start(name: str) -> Path:
        output = tmp_path / name / "expert_sidecar"
        output.parent.mkdir()
        if replaces:
            export_sidecar(other_checkpoint, output)
        return output

    output = start("whole")
    old = contents(output)
    finished = run_until(EXPORT, checkpoint, output, 0)
    assert finished.returncode == 0, finished.stderr
    new = contents(output)
    assert new != old
    moments = int(finished.stdout)
    assert moments > 10
    outcomes = set()
    # Every second one: each run starts an interpreter. The last ones, around the exchange, all.
    for moment in sorted({*range(1, moments + 1, 3), *range(moments - 7, moments + 1)}):
        output = start(f"killed at {moment}")
        killed = run_until(EXPORT, checkpoint, output, moment)
        assert killed.returncode == -signal.SIGKILL, (moment, killed.stderr)
        found = contents(output)
        assert found in (old, new), moment
        outcomes.add("new" if found == new else "old")
        if found is not None:
            assert verify_sidecar(str(output)) == []
        export_sidecar(checkpoint, output)
        assert contents(output) == new, moment
        assert os.listdir(output.parent) == ["expert_sidecar"], moment
    assert outcomes == {"old", "new"}


def test_a_rerun_goes_on_from_the_layers_that_are_done(tmp_path, checkpoint) -> None:
    output = tmp_path / "expert_sidecar"
    moment = 1
    while not (tmp_path / "expert_sidecar.partial" / "progress.json").exists():
        moment += 2
        assert run_until(EXPORT, checkpoint, output, moment).returncode == -signal.SIGKILL
    done = (tmp_path / "expert_sidecar.partial" / "layer_00.bin").stat()
    export_sidecar(checkpoint, output)
    assert (output / "layer_00.bin").stat().st_ino == done.st_ino
    assert verify_sidecar(str(output)) == []


def test_of_two_exports_at_once_the_second_is_refused(tmp_path, checkpoint) -> None:
    output = tmp_path / "expert_sidecar"
    refusals = []

    def meanwhile(done: int, total: int) -> None:
        with pytest.raises(SidecarExportError, match="another export is writing here"):
            export_sidecar(checkpoint, output)
        refusals.append(run_until(EXPORT, checkpoint, output, 0))

    export_sidecar(checkpoint, output, progress=meanwhile)
    assert len(refusals) == 2
    assert all("another export is writing here" in refusal.stderr for refusal in refusals)
    assert verify_sidecar(str(output)) == []
    assert os.listdir(tmp_path) == ["expert_sidecar"]
