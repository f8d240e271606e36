"""Compares exporting a sidecar from each form of checkpoint with copying the checkpoint's files, in one run.

    uv run python tools/bench/bench_export.py [--gigabytes 1.1] [--rounds 3] [--folder DIR]

Every round copies the checkpoint with `cp` and syncs it, and exports its experts, both once with the source
in the page cache (warm) and once without (cold; Linux only), in alternating order. An export runs in a
process of its own, which reports its time, start of the interpreter excluded, and its peak memory. Speeds are
bytes of the source per second; the ratio is the median of the rounds' own ratios, because a shared disk's
speed drifts.
Appends to docs/bench/export.csv.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from bench_record import append_rows
from beside_copying import PEAK, beside_copying, caches

from mach.commands.process import run_command
from mach.io.safetensors_header import DTYPE_BITS
from mach_store.safetensors_writer import OutputTensor, write_safetensors

HIDDEN, WIDTH, EXPERTS, TOP_K = 2048, 768, 32, 4
EXPERT_WEIGHTS = 3 * HIDDEN * WIDTH
EXPORT = (
    PEAK
    + """
import json, sys, time
from mach_store.sidecar.export import export_sidecar

before = peak()
start = time.perf_counter()
layout = export_sidecar(Path(sys.argv[1]), Path(sys.argv[2]))
seconds = time.perf_counter() - start
stride = layout.layers[0].file_bytes
print(json.dumps({"seconds": seconds, "before": before, "peak": peak(), "layer": stride}))
"""
)

Tensors = Iterator[tuple[str, str, tuple[int, ...]]]


def stacked(layers: int, q: dict | None) -> Tensors:
    """MLX's form: experts on axis 0."""
    for layer in range(layers):
        for projection in ("gate_proj", "up_proj", "down_proj"):
            rows, columns = (HIDDEN, WIDTH) if projection == "down_proj" else (WIDTH, HIDDEN)
            path = f"model.layers.{layer}.mlp.switch_mlp.{projection}"
            if q is None:
                yield f"{path}.weight", "BF16", (EXPERTS, rows, columns)
                continue
            yield f"{path}.weight", "U32", (EXPERTS, rows, columns * q["bits"] // 32)
            for component in ("scales", "biases"):
                yield f"{path}.{component}", "BF16", (EXPERTS, rows, columns // q["group_size"])


def per_expert(layers: int, fp8: bool) -> Tensors:
    """Qwen3's form: a tensor per expert, in the release's order."""
    for layer in range(layers):
        for expert in range(EXPERTS):
            for projection in ("down_proj", "gate_proj", "up_proj"):
                rows, columns = (HIDDEN, WIDTH) if projection == "down_proj" else (WIDTH, HIDDEN)
                path = f"model.layers.{layer}.mlp.experts.{expert}.{projection}.weight"
                yield path, "F8_E4M3" if fp8 else "BF16", (rows, columns)
                if fp8:
                    yield f"{path}_scale_inv", "BF16", (rows // 128, columns // 128)


def fused(layers: int) -> Tensors:
    """Qwen3.5's form: gate and up in one tensor, experts on axis 0."""
    for layer in range(layers):
        path = f"model.layers.{layer}.mlp.experts"
        yield f"{path}.gate_up_proj", "BF16", (EXPERTS, 2 * WIDTH, HIDDEN)
        yield f"{path}.down_proj", "BF16", (EXPERTS, HIDDEN, WIDTH)


def blocks(layers: int) -> Tensors:
    """gpt_oss's form: mxfp4 blocks, gate and up rows alternating, biases."""
    for layer in range(layers):
        path = f"model.layers.{layer}.mlp.experts"
        for name, rows, columns in (("gate_up_proj", 2 * WIDTH, HIDDEN), ("down_proj", HIDDEN, WIDTH)):
            yield f"{path}.{name}_blocks", "U8", (EXPERTS, rows, columns // 32, 16)
            yield f"{path}.{name}_scales", "U8", (EXPERTS, rows, columns // 32)
            yield f"{path}.{name}_bias", "BF16", (EXPERTS, rows)


AFFINE4 = {"bits": 4, "group_size": 64}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
FORMS = {
    "stacked bf16": ("qwen3_moe", 2.0, lambda n: stacked(n, None), {}),
    "stacked affine 4-bit": ("qwen3_moe", 0.5625, lambda n: stacked(n, AFFINE4), {"quantization": AFFINE4}),
    "per expert bf16": ("qwen3_moe", 2.0, lambda n: per_expert(n, False), {}),
    "fused bf16": ("qwen3_moe", 2.0, fused, {}),
    "mxfp4 blocks": ("gpt_oss", 0.53125, blocks, {"quantization_config": {"quant_method": "mxfp4"}}),
    "per expert fp8, decoded": (
        "qwen3_moe",
        1.0,
        lambda n: per_expert(n, True),
        {"quantization_config": FP8},
    ),
}


def main(arguments: Sequence[str]) -> int:
    """Measure, print a table, append the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=1.1, help="of each checkpoint")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    parser.add_argument("--form", choices=FORMS, action="append", help="only this one (may be repeated)")
    options = parser.parse_args(arguments)
    rows = []
    for form in options.form or FORMS:
        with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
            directory = Path(scratch) / "source"
            size = write_checkpoint(directory, form, options.gigabytes)
            for cold in caches():
                figures = beside_copying(
                    "export",
                    EXPORT,
                    [],
                    directory,
                    Path(scratch) / "out",
                    bytes_of=lambda _report, size=size: size,
                    size_column="source_gb",
                    cold=cold,
                    rounds=options.rounds,
                )
                rows.append({"form": form, **figures})
    append_rows("export", rows)
    return 0


def write_checkpoint(directory: Path, form: str, gigabytes: float) -> int:
    """A checkpoint of experts alone, of random bytes that decode to finite numbers; gives its size."""
    family, bytes_per_weight, tensors, extra = FORMS[form]
    layers = max(1, round(gigabytes * 1e9 / (EXPERTS * EXPERT_WEIGHTS * bytes_per_weight)))
    directory.mkdir()
    config = {
        "model_type": family, "hidden_size": HIDDEN, "num_hidden_layers": layers,
        "num_local_experts": EXPERTS, "num_experts_per_tok": TOP_K,
        ("intermediate_size" if family == "gpt_oss" else "moe_intermediate_size"): WIDTH,
        **extra,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    noise = (np.random.default_rng(0).integers(0, 256, 64 << 20, np.uint8) & 0x3F).tobytes()
    outputs = []
    for name, dtype, shape in tensors(layers):
        nbytes = int(np.prod(shape)) * DTYPE_BITS[dtype] // 8
        outputs.append(
            OutputTensor(name=name, dtype=dtype, shape=shape, nbytes=nbytes, chunks=_repeat(noise, nbytes))
        )
    write_safetensors(str(directory / "model.safetensors"), outputs)
    return sum(output.nbytes for output in outputs)


def _repeat(noise: bytes, nbytes: int) -> Iterator[memoryview]:
    for start in range(0, nbytes, len(noise)):
        yield memoryview(noise)[: min(len(noise), nbytes - start)]


if __name__ == "__main__":
    sys.exit(run_command("bench_export", main))
