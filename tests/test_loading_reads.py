"""Loading a sliced checkpoint reads no expert bytes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mach.io.checkpoint_path import resolve_checkpoint
from mach.io.inspection import inspect_checkpoint
from mach_decode.loader import load_moe
from mach_store.errors import SidecarCorruptionError
from mach_store.synthetic_checkpoint import qwen3_moe_config, write_synthetic_checkpoint

READ_BY_LOADING = """
import sys
import mlx.core as mx
from mach_decode.loader import load_moe

def read_so_far():
    # rchar: what every read, pread and readv of this process asked the kernel for and got.
    with open("/proc/self/io") as lines:
        return int(dict(line.split(": ") for line in lines)["rchar"])

mx.set_default_device(mx.cpu)
before = read_so_far()
_, _, store, _ = load_moe(sys.argv[1], expert_cache_gb=float(sys.argv[2]))
print(read_so_far() - before, store.totals().bytes_read, *(len(p.table) for p in store._pools))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = qwen3_moe_config(
        hidden=256, layers=4, experts=32, expert_width=1024, head_dim=64, vocabulary=8192, group_size=64
    )
    directory = tmp_path_factory.mktemp("sliced") / "checkpoint"
    write_synthetic_checkpoint(directory, config, tokenizer_from=resolve_checkpoint("mach-pico"))
    return directory


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a process's reads")
def test_the_kernel_counts_fewer_bytes_than_a_layer_of_experts_has(checkpoint: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", READ_BY_LOADING, str(checkpoint), "0.01"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    read, by_reader, *resident = map(int, run.stdout.split())
    others = sum(path.stat().st_size for path in checkpoint.iterdir() if path.is_file())
    layer = (checkpoint / "expert_sidecar" / "layer_00.bin").stat().st_size
    assert others < read < layer, "the other weights, the tokenizer, modules: less than one layer's experts"
    assert by_reader == 0 and resident == [0]


def test_experts_that_are_holes_do_not_hinder_loading_and_never_become_tokens(
    checkpoint: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "holes"
    (directory / "expert_sidecar").mkdir(parents=True)
    for path in checkpoint.iterdir():
        if path.is_file():
            os.link(path, directory / path.name)
    os.link(checkpoint / "expert_sidecar" / "layout.json", directory / "expert_sidecar" / "layout.json")
    for path in (checkpoint / "expert_sidecar").glob("layer_*.bin"):
        with open(directory / "expert_sidecar" / path.name, "wb") as hole:
            hole.truncate(path.stat().st_size)
    _, _, store, _ = load_moe(str(directory), expert_cache_gb=0.01)
    assert store.totals().bytes_read == 0
    layer = inspect_checkpoint(directory).shape.moe_layers[0]
    with pytest.raises(SidecarCorruptionError, match=f"layer {layer}, expert 3"):
        store.layers[layer].acquire([3])
    store.close()
