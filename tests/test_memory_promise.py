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


def peak_bytes(checkpoint: Path, bank: int, **environment: str) -> float:
    """The most memory that a short generation had."""
    run = subprocess.run(
        [
            sys.executable, "-m", "mach_cli.generate_command", str(checkpoint), "--streaming",
            "--prompt", "def f(x): return x " * 4, "--max-tokens", "6", "--expert-cache-gb", str(bank / 1e9),
        ],
        capture_output=True, text=True, timeout=280, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    peak = re.search(r"peak memory (\d+) MB", run.stderr)
    assert peak is not None, run.stderr
    return int(peak.group(1)) * 1e6
