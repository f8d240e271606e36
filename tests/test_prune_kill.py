"""kill -9 at any moment of mach-prune leaves nothing or a whole checkpoint; a rerun gives the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kill_moment import command_at, run_until

from mach_store.engine_checkpoint import write_stacked_checkpoint
from mach_store.errors import SidecarExportError
from mach_store.prune import pruner
from mach_store.prune.pruner import prune_checkpoint
from mach_store.sidecar.verification import verify_sidecar
from mach_store.synthetic_checkpoint import qwen3_moe_config, write_synthetic_checkpoint

PRUNE = """
from mach_store.prune import pruner
pruner.MAX_SHARD_BYTES = 100_000
pruner.prune_checkpoint(source, Path(output), overwrite="--overwrite" in sys.argv)
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two stacked checkpoints, each with a tokenizer file."""
    made = []
    for seed, layers in ((1, 2), (2, 3)):
        root = tmp_path_factory.mktemp("source")
        config = qwen3_moe_config(layers=layers, experts=4, vocabulary=2048)
        write_synthetic_checkpoint(root / "engine", config, seed=seed)
        write_stacked_checkpoint(root / "engine", root / "stacked")
        (root / "stacked" / "tokenizer.json").write_text("{}")
        made.append(root / "stacked")
    return made[0], made[1]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruner, "MAX_SHARD_BYTES", 100_000)


def contents(directory: Path) -> dict[str, bytes] | None:
    if not directory.exists():
        return None
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize("replaces", [False, True], ids=["first run", "over an old one"])
def test_a_kill_at_any_moment_leaves_old_or_new_and_a_rerun_finishes(tmp_path, sources, replaces) -> None:
    source, other = sources
    more = ["--overwrite"] if replaces else []

    def start(name: str) -> Path:
        output = tmp_path / name / "out"
        output.parent.mkdir()
        if replaces:
            prune_checkpoint(other, output)
        return output

    output = start("whole")
    old = contents(output)
    finished = run_until(PRUNE, source, output, 0, *more)
    assert finished.returncode == 0, finished.stderr
    new = contents(output)
    assert new != old
    moments = int(finished.stdout)
    assert moments > 30
    outcomes = set()
    # Every fourth one: each run starts an interpreter. The last ones, around the exchange, all.
    last = 22 if replaces else 6
    for moment in sorted({*range(1, moments + 1, 4), *range(moments - last, moments + 1)}):
        output = start(f"killed at {moment}")
        killed = run_until(PRUNE, source, output, moment, *more)
        assert killed.returncode == -signal.SIGKILL, (moment, killed.stderr)
        found = contents(output)
        assert found in (old, new), moment
        outcomes.add("new" if found == new else "old")
        # What is there already, of the same source, needs no --overwrite.
        prune_checkpoint(source, output, overwrite=replaces and found != new)
        assert contents(output) == new, moment
        assert os.listdir(output.parent) == ["out"], moment
    assert outcomes == {"old", "new"}


def test_a_run_that_is_killed_again_and_again_gets_there(tmp_path, sources) -> None:
    source, _ = sources
    prune_checkpoint(source, tmp_path / "whole")
    output, dice = tmp_path / "out", random.Random(7)
    command = command_at(PRUNE, source, output, 0)
    kills = 0
    while not output.exists():
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and not output.with_name("out.partial").exists():
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.02) if kills < 12 else 1)
        process.kill()
        _, err = process.communicate(timeout=120)
        assert process.returncode in (0, -signal.SIGKILL), err
        kills += process.returncode != 0
    assert kills > 0
    prune_checkpoint(source, output)
    assert contents(output) == contents(tmp_path / "whole")
    assert verify_sidecar(str(output / "expert_sidecar")) == []
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]


def test_of_two_runs_at_once_the_second_is_refused(tmp_path, sources) -> None:
    source, _ = sources
    output = tmp_path / "out"
    refused = []

    def meanwhile(_: object) -> None:
        if not refused:
            with pytest.raises(SidecarExportError, match="another export is writing here"):
                prune_checkpoint(source, output)
            refused.append(run_until(PRUNE, source, output, 0))

    prune_checkpoint(source, output, listener=meanwhile)
    assert "another export is writing here" in refused[0].stderr
    assert os.listdir(tmp_path) == ["out"]


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(tmp_path, sources) -> None:
    source, _ = sources
    output = tmp_path / "out"
    # Ignored, SIGXFSZ makes the write fail with EFBIG: the nearest to a full disk without one.
    for limit in (1_000, 30_000, 70_000):
        code = (
            "import resource, signal, sys\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))\n"
            "from mach_cli.prune_command import main\n"
            "sys.exit(main())\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", code, "--source", str(source), "--output", str(output)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert result.returncode == 2, limit
        assert result.stdout == ""
        assert result.stderr.startswith("mach-prune: ")
        assert result.stderr.count("\n") == 1, result.stderr
        assert "File too large" in result.stderr
        assert "kept" in result.stderr
        assert not output.exists()
    prune_checkpoint(source, output)
    prune_checkpoint(source, tmp_path / "whole")
    assert contents(output) == contents(tmp_path / "whole")
