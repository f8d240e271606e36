"""Compares the start-up of mach-core's commands with `python -c "import json"`, alternating, by medians.

    python tools/bench/bench_startup.py [--rounds 31]

Appends to docs/bench/startup.csv. Exit status 1 if a command exceeds its limit. The commands come from the
environment of the Python that runs this; `mach check` and `mach-models` look at a directory of 50 small
pretended checkpoints.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path

from bench_record import append_rows

from mach.io.arch_registry import adapter_for
from mach.io.config_file import ConfigFields
from mach.io.model_tensors import model_tensors

CHECKPOINTS = 50
LARGE = {"layers": 62, "experts": 403, "shards": 200}
LARGE_LIMIT_SECONDS = 3.0
EXPERTS = 8
CONFIG = {
    "model_type": "qwen3_moe",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "vocab_size": 256,
    "max_position_embeddings": 4096,
    "intermediate_size": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
TOKENIZER = '{"model": {}}'


def make_checkpoint(directory: Path) -> None:
    """A stacked checkpoint whose safetensors data is a hole."""
    directory.mkdir()
    header, offset = {}, 0
    for layer in range(CONFIG["num_hidden_layers"]):
        for projection, shape in (("gate_proj", (64, 128)), ("up_proj", (64, 128)), ("down_proj", (128, 64))):
            size = EXPERTS * shape[0] * shape[1] * 2
            header[f"model.layers.{layer}.mlp.switch_mlp.{projection}.weight"] = {
                "dtype": "BF16",
                "shape": [EXPERTS, *shape],
                "data_offsets": [offset, offset + size],
            }
            offset += size
    config = ConfigFields(CONFIG, "config.json")
    for name, shape in model_tensors("qwen3_moe", config, config, adapter_for(config).moe_shape(config)):
        size = 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer.json").write_text(TOKENIZER)
    with open(directory / "model.safetensors", "wb") as handle:
        handle.write(len(raw).to_bytes(8, "little") + raw)
        handle.truncate(8 + len(raw) + offset)


def make_large_checkpoint(directory: Path) -> int:
    """A raw checkpoint of 470 GB in sparse files; the number of its tensors."""
    directory.mkdir()
    config = CONFIG | {
        "num_hidden_layers": LARGE["layers"],
        "num_experts": LARGE["experts"],
        "hidden_size": 4096,
        "moe_intermediate_size": 1536,
        "quantization_config": {"quant_method": "fp8"},
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text(TOKENIZER)
    tensors = [
        (f"model.layers.{layer}.mlp.experts.{expert}.{projection}.{name}", dtype, shape, size)
        for layer in range(LARGE["layers"])
        for expert in range(LARGE["experts"])
        for projection in ("gate_proj", "up_proj", "down_proj")
        for name, dtype, shape, size in (
            ("weight", "F8_E4M3", [1536, 4096], 1536 * 4096),
            ("weight_scale_inv", "F32", [12, 32], 12 * 32 * 4),
        )
    ]
    per_shard = -(-len(tensors) // LARGE["shards"])
    weight_map = {}
    for shard in range(LARGE["shards"]):
        header, offset, file = {}, 0, f"model-{shard:05d}.safetensors"
        for name, dtype, shape, size in tensors[shard * per_shard : (shard + 1) * per_shard]:
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size
            weight_map[name] = file
        raw = json.dumps(header).encode()
        with open(directory / file, "wb") as handle:
            handle.write(len(raw).to_bytes(8, "little") + raw)
            handle.truncate(8 + len(raw) + offset)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return len(tensors)


def seconds(command: list[str]) -> float:
    """Wall time of one run."""
    begin = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def main() -> int:
    """Measure, print a table, append to the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=31)
    options = parser.parse_args()
    scripts = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as root:
        for index in range(CHECKPOINTS):
            make_checkpoint(Path(root) / f"checkpoint-{index:02d}")
        cases = {
            "mach-archs --json": (3.0, [str(scripts / "mach-archs"), "--json"]),
            "mach --help": (4.0, [str(scripts / "mach"), "--help"]),
            "mach check LOCAL": (4.0, [str(scripts / "mach"), "check", f"{root}/checkpoint-00"]),
            "mach-models --local-only (50)": (
                4.0,
                [str(scripts / "mach-models"), "--local-only", "--dir", root, "--cache-dir", f"{root}/none"],
            ),
        }
        baseline = [sys.executable, "-c", "import json"]
        times: dict[str, list[float]] = {name: [] for name in ("baseline", *cases)}
        for _ in range(options.rounds):
            times["baseline"].append(seconds(baseline))
            for name, (_, command) in cases.items():
                times[name].append(seconds(command))
        count = make_large_checkpoint(Path(root) / "large")
        check = [str(scripts / "mach"), "check", f"{root}/large"]
        large = statistics.median(_status_ignored(check) for _ in range(3))
    medians = {name: statistics.median(values[1:] or values) for name, values in times.items()}
    rows = [
        {
            "case": name,
            "median_ms": round(medians[name] * 1e3, 2),
            "import_json_ms": round(medians["baseline"] * 1e3, 2),
            "ratio": round(medians[name] / medians["baseline"], 2),
            "limit": limit,
            "python": platform.python_version(),
        }
        for name, (limit, _) in cases.items()
    ]
    append_rows("startup", rows)
    print(f"mach check of 470 GB, {count} tensors: {large:.2f} s (limit {LARGE_LIMIT_SECONDS:g} s)")
    late = large > LARGE_LIMIT_SECONDS
    return 1 if late or any(row["ratio"] > row["limit"] for row in rows) else 0


def _status_ignored(command: list[str]) -> float:
    """Wall time of a run whose answer is no (a raw checkpoint is not served as it stands)."""
    begin = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    return time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(main())
