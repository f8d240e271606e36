"""Random checkpoints with mach-pico's tokenizer, in the sliced and the stacked layout."""

from pathlib import Path

import mlx.core as mx
import pytest

from mach.io.checkpoint_path import resolve_checkpoint
from mach_cli.trace_command import main
from mach_store.engine_checkpoint import write_stacked_checkpoint
from mach_store.synthetic_checkpoint import qwen3_moe_config, write_synthetic_checkpoint

# Exact comparisons hold on the CPU; a GPU's kernels change with the number of rows.
mx.set_default_device(mx.cpu)


@pytest.fixture(scope="session")
def sliced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pico = resolve_checkpoint("mach-pico")
    config = qwen3_moe_config(context=128)
    directory = tmp_path_factory.mktemp("checkpoints") / "sliced"
    write_synthetic_checkpoint(directory, config, seed=3, tokenizer_from=pico)
    return directory


@pytest.fixture(scope="session")
def stacked(sliced: Path) -> Path:
    directory = sliced.parent / "stacked"
    write_stacked_checkpoint(sliced, directory)
    return directory


@pytest.fixture(scope="session")
def plain(sliced: Path) -> Path:
    """Without quantisation, and without a tokenizer."""
    config = qwen3_moe_config(context=128)
    del config["quantization"]
    directory = sliced.parent / "plain"
    write_synthetic_checkpoint(directory, config, seed=3)
    return directory


@pytest.fixture(scope="session")
def recording(sliced: Path) -> Path:
    """A trace of two answers, recorded with a small bank; nobody writes into it."""
    path = sliced.parent / "recording.trace"
    arguments = ["record", str(sliced), "--out", str(path), "--expert-cache-gb", "0.00007"]
    assert main([*arguments, "--prompt", "def f(x):", "--prompt", "import " * 40, "--max-tokens", "12"]) == 0
    return path
