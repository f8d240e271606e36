"""Peak memory of a streaming run under a hard limit smaller than its experts.

    uv run python tools/bench/bench_memory.py [--limit-gb 1.2] [--expert-cache-gb 0.5]

Makes a random checkpoint with more than 2 GB of experts, generates with streaming inside a memory cgroup of
`--limit-gb` (page cache included), and then loads the same weights whole under the same limit, which the
kernel must kill. Where no cgroup can be made, RLIMIT_DATA stands in and the table says so. Appends to
docs/bench/memory.csv.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
from bench_record import add_output_option, append_rows
from memory_limit import MemoryLimit

from mach.commands.process import run_command
from mach.io.checkpoint_path import resolve_checkpoint
from mach.io.inspection import inspect_checkpoint
from mach.io.sidecar_layout import read_layout
from mach_store.bank_form import kernels_take_schema
from mach_store.cpu_kernels import open_kernels
from mach_store.engine_checkpoint import write_stacked_checkpoint
from mach_store.expert_arrays import slot_bytes
from mach_store.settings import StoreSettings
from mach_store.synthetic_checkpoint import qwen3_moe_config, write_synthetic_checkpoint

CONFIG = qwen3_moe_config(
    hidden=1024,
    layers=12,
    experts=72,
    top_k=4,
    expert_width=1536,
    head_dim=64,
    context=4096,
    group_size=64,
)
WHOLE = """
import sys
from mach_decode.engine import Engine, EngineConfig
from mach_decode.request import GenerationRequest
from mach.preflight.memory_plan import plan_memory
import mach_decode.store_opening as opening
assert opening.admitted_plan
# The honest refusal would hide what the kernel does: nothing is known of this machine's memory.
opening.admitted_plan = lambda checkpoint, needs, budgets: plan_memory(needs, budgets, None, "nobody")
engine = Engine.load(EngineConfig(checkpoint=sys.argv[1], expert_residency="stacked"))
list(engine.generate(GenerationRequest(prompt=engine.encode("x = 1"), max_tokens=2)))
"""


def main(arguments: Sequence[str]) -> int:
    """Measure, print a table, append the CSV; exit status 1 when the promise is broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit-gb", type=float, default=1.2)
    parser.add_argument("--expert-cache-gb", type=float, default=0.5)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=48)
    add_output_option(parser)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        sliced, stacked = Path(scratch) / "sliced", Path(scratch) / "stacked"
        write_synthetic_checkpoint(sliced, CONFIG, tokenizer_from=resolve_checkpoint("mach-pico"))
        write_stacked_checkpoint(sliced, stacked)
        inspection = inspect_checkpoint(sliced)
        assert inspection.sidecar_directory is not None
        layout = read_layout(inspection.sidecar_directory)
        settings = StoreSettings.from_environment()
        schema = layout.layers[0].schema
        as_stored = kernels_take_schema(schema, open_kernels(settings))
        slot = slot_bytes(schema, mx.bfloat16 if as_stored else mx.float32)
        scratch_bytes = settings.scratch_experts * slot
        with MemoryLimit(int(options.limit_gb * 1e9)) as limit:
            streamed = limit.run(
                [
                    sys.executable, "-m", "mach_cli.generate_command", str(sliced), "--streaming",
                    "--prompt", "a b " * (options.prompt_tokens // 2),
                    "--max-tokens", str(options.tokens), "--expert-cache-gb", str(options.expert_cache_gb),
                ]
            )  # fmt: skip
            whole = limit.run([sys.executable, "-c", WHOLE, str(stacked)])
    print(streamed.stderr, file=sys.stderr)
    peak = re.search(r"peak memory (\d+) MB", streamed.stderr)
    row = {
        "limit": f"{options.limit_gb:.2f} GB {limit.kind}",
        "experts_gb": f"{layout.record_bytes_total / 1e9:.3f}",
        "other_weights_mb": f"{inspection.other_bytes / 1e6:.0f}",
        "bank_mb": f"{options.expert_cache_gb * 1e3:.0f}",
        "scratch_mb": f"{scratch_bytes / 1e6:.0f}",
        "streaming_exit": streamed.returncode,
        "streaming_peak_mb": peak.group(1) if peak else "",
        "whole_exit": whole.returncode,
    }
    constant = float("nan")
    if peak:
        promised = inspection.other_bytes + options.expert_cache_gb * 1e9 + scratch_bytes
        constant = float(peak.group(1)) - promised / 1e6
        row["constant_mb"] = f"{constant:.0f}"
    append_rows("memory", [row], directory=options.output)
    killed = whole.returncode == -9 if limit.kind == "cgroup" else "MemoryError" in whole.stderr
    if not killed:
        print(f"all weights at once were not stopped by the limit: {whole.stderr}", file=sys.stderr)
    return 0 if streamed.returncode == 0 and killed and constant <= 256 else 1


if __name__ == "__main__":
    sys.exit(run_command("bench_memory", main))
