"""Peak memory of a streaming run stays within what it was promised, whatever the experts weigh."""

import os
import re
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from mach.io.checkpoint_path import resolve_checkpoint
from mach.io.inspection import inspect_checkpoint
from mach.io.sidecar_layout import read_layout
from mach_store.bf16_form import Bf16Form
from mach_store.cpu_kernels import open_kernels
from mach_store.engine_checkpoint import write_stacked_checkpoint
from mach_store.expert_arrays import slot_bytes
from mach_store.scatter_reader import python_twin
from mach_store.settings import StoreSettings
from mach_store.stacked_source import stacked_schemas
from mach_store.synthetic_checkpoint import qwen3_moe_config, write_synthetic_checkpoint

CONSTANT = 256_000_000
"""Interpreter, MLX, tokenizer, activations: docs/architecture.md."""

CONFIG = qwen3_moe_config(
    hidden=512, layers=6, experts=64, expert_width=2048, head_dim=64, context=2048, group_size=64
)


@pytest.fixture(scope="module")
def big_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("big")
    write_synthetic_checkpoint(directory, CONFIG, tokenizer_from=resolve_checkpoint("mach-pico"))
    return directory


def test_a_streaming_run_stays_within_weights_bank_scratch_and_a_constant(big_checkpoint: Path) -> None:
    inspection = inspect_checkpoint(big_checkpoint)
    assert inspection.sidecar_directory is not None
    layout = read_layout(inspection.sidecar_directory)
    bank = 60_000_000
    scratch = StoreSettings().scratch_experts * slot_bytes(layout.layers[0].schema, mx.bfloat16)
    # Not-expert weights are widened to float32 on the CPU: at most twice their bytes on disk.
    promised = 2 * inspection.other_bytes + bank + scratch + CONSTANT
    assert promised < layout.record_bytes_total, "the experts must not fit, or nothing is shown"
    assert peak_bytes(big_checkpoint, bank) <= promised


def test_a_bf16_streaming_run_does_too(big_checkpoint: Path, tmp_path: Path) -> None:
    write_stacked_checkpoint(big_checkpoint, tmp_path / "stacked")
    inspection = inspect_checkpoint(tmp_path / "stacked")
    schemas, _ = stacked_schemas(inspection)
    bank, arena = 90_000_000, 4
    scratch = Bf16Form(mx.float32, python_twin(), open_kernels(StoreSettings())).scratch_bytes(
        schemas[0], arena
    )
    promised = 2 * inspection.other_bytes + bank + scratch + CONSTANT
    assert promised < inspection.expert_bytes, "the experts must not fit, or nothing is shown"
    variables = {"LME_BF16_STACKED_STREAMING": "1", "LME_SCRATCH_EXPERTS": str(arena)}
    assert peak_bytes(tmp_path / "stacked", bank, **variables) <= promised


def test_a_cap_is_never_exceeded_and_used_for_the_bank(big_checkpoint: Path) -> None:
    inspection = inspect_checkpoint(big_checkpoint)
    assert inspection.sidecar_directory is not None
    experts = read_layout(inspection.sidecar_directory).record_bytes_total
    for cap in (0.75e9, 0.9e9):
        load = [sys.executable, "-c", BANK_UNDER_A_CAP, str(big_checkpoint), str(cap / 1e9)]
        bank = int(subprocess.run(load, capture_output=True, text=True, timeout=280, check=True).stdout)
        assert 100_000_000 < bank < experts, "the bank must be bounded by the cap, or nothing is shown"
        peak = peak_bytes(big_checkpoint, None, "--memory-gb", str(cap / 1e9), prompt="def f(x): " * 150)
        assert bank < peak <= cap


BANK_UNDER_A_CAP = """
import sys
from mach_decode.loader import load_moe
print(load_moe(sys.argv[1], memory_gb=float(sys.argv[2]))[2].nbytes)
"""


def peak_bytes(
    checkpoint: Path,
    bank: int | None,
    *flags: str,
    prompt: str = "def f(x): return x " * 4,
    **environment: str,
) -> float:
    """The most memory that a short generation had."""
    bounds = flags if bank is None else (*flags, "--expert-cache-gb", str(bank / 1e9))
    run = subprocess.run(
        [
            sys.executable, "-m", "mach_cli.generate_command", str(checkpoint), "--streaming",
            "--prompt", prompt, "--max-tokens", "6", *bounds,
        ],
        capture_output=True, text=True, timeout=280, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    peak = re.search(r"peak memory (\d+) MB", run.stderr)
    assert peak is not None, run.stderr
    return int(peak.group(1)) * 1e6
