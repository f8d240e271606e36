"""Figure 1, first part: native CPU kernels against stock MLX operations and the memory's bandwidth.

    uv run python tools/bench/bench_kernels.py [--experts 128] [--rounds 15]

One layer's routed experts as large models have them (width 768, hidden 2048, top 8), in every packing, for
one token, 16 and (4-bit) 256; and dense projections. Every call of the one-token rows takes other experts, so
that their weights come from memory. Rounds alternate; times are medians over rounds, `speedup` and
`of_bandwidth` medians of each round's ratio. The bandwidth is what numpy reads with as many threads. Stock
float32 products cannot take bfloat16 weights, so there they get float32 ones. Appends to
docs/bench/kernels.csv.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
from bench_record import add_output_option, append_rows
from quietness import Quietness

from lme_cpu_kernels import DenseProduct, ExpertProduct, build_info, reference
from mach.commands.process import run_command

HIDDEN, WIDTH, TOP_K = 2048, 768, 8
PACKINGS = {
    "affine 4-bit": (("affine", 4, 64), mx.bfloat16),
    "affine 4-bit, float32 scales": (("affine", 4, 64), mx.float32),
    "affine 8-bit": (("affine", 8, 64), mx.bfloat16),
    "mxfp4": (("mxfp4", 4, 32), mx.bfloat16),
    "bfloat16": (None, mx.bfloat16),
    "float32": (None, mx.float32),
}


def main(arguments: Sequence[str]) -> int:
    """Measure, print a table, append the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0)
    add_output_option(parser)
    options = parser.parse_args(arguments)
    quietness = Quietness()
    mx.set_default_device(mx.cpu)
    threads = options.threads or int(build_info()["threads"])
    rows = []
    with ThreadPoolExecutor(threads) as pool:
        bandwidth = Bandwidth(pool, threads)
        for name, (packing, dtype) in PACKINGS.items():
            experts = options.experts if packing is not None else max(16, options.experts // 4)
            rows += routed(name, packing, dtype, experts, threads, options.rounds, bandwidth)
        for name in ("affine 4-bit", "float32"):
            packing, dtype = PACKINGS[name]
            rows += dense(name, packing, dtype, threads, options.rounds)
    append_rows(
        "kernels",
        rows,
        replacing=("kernels", "threads"),
        directory=options.output,
        kernels=build_info()["kernels"],
        threads=threads,
        others=quietness.others(),
    )
    return 0


class Bandwidth:
    """What this machine reads from memory right now."""

    def __init__(self, pool: ThreadPoolExecutor, threads: int) -> None:
        self._pool = pool
        self._parts = np.array_split(np.ones(96 << 20, np.float32), threads)

    def measure(self) -> float:
        """Bytes per second of one pass over 384 MiB."""
        began = time.perf_counter()
        list(self._pool.map(np.max, self._parts))
        return sum(part.nbytes for part in self._parts) / (time.perf_counter() - began)


def routed(
    name: str,
    packing: tuple[str, int, int] | None,
    dtype: mx.Dtype,
    experts: int,
    threads: int,
    rounds: int,
    bandwidth: Bandwidth,
) -> Iterator[dict[str, object]]:
    """A layer's routed experts."""
    shapes = ((WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH))
    parts = [_packed(experts, *shape, packing, dtype, key) for key, shape in enumerate(shapes)]
    block = ExpertProduct(*parts, (packing,) * 3, activation="swiglu", threads=threads)
    # Stock operations would convert all scales in every call: they get float32 ones, their best setting.
    wide = [
        {n: a.astype(mx.float32) if a.dtype == mx.bfloat16 else a for n, a in part.items()} for part in parts
    ]
    mx.eval(wide)
    # Stock operations take ten seconds and more for 256 tokens: once will do.
    for tokens in (1, 16, 256) if name == "affine 4-bit" else (1, 16):
        dice = np.random.default_rng(tokens)
        x = mx.random.normal((tokens, HIDDEN), key=mx.random.key(tokens))
        mx.eval(x)

        def native(slots: mx.array, x: mx.array = x) -> mx.array:
            return block(x, slots)

        def stock(slots: mx.array, x: mx.array = x) -> mx.array:
            if slots.size < 64:
                return reference.expert_product(*wide, (packing,) * 3, x, slots, activation="swiglu")
            order = mx.argsort(slots.flatten())
            sorted_rows = x[order // TOP_K]
            y = reference.expert_product(
                *wide, (packing,) * 3, sorted_rows, slots.flatten()[order][:, None], activation="swiglu"
            )
            return y[mx.argsort(order)]

        times: list[tuple[float, float, float]] = []
        for _ in range({1: rounds, 16: max(1, rounds // 5)}.get(tokens, 1)):
            slots = mx.array(
                np.stack([dice.permutation(experts)[:TOP_K] for _ in range(tokens)]).astype(np.uint32)
            )
            again = max(1, 8 // tokens)
            calls = [
                mx.array(
                    np.stack([dice.permutation(experts)[:TOP_K] for _ in range(tokens)]).astype(np.uint32)
                )
                for _ in range(again)
            ]
            mx.eval(slots, calls)
            limit = block.bytes_per_slot * TOP_K / bandwidth.measure() if tokens == 1 else 0.0
            ours = sum(_seconds(native, one) for one in calls) / again
            times.append((ours, _seconds(stock, slots), limit))
        ours = statistics.median(t[0] for t in times)
        row: dict[str, object] = {
            "what": f"routed experts, {name}",
            "tokens": tokens,
            "native_us": f"{ours * 1e6:.0f}",
            "stock_us": f"{statistics.median(t[1] for t in times) * 1e6:.0f}",
            "speedup": f"{statistics.median(t[1] / t[0] for t in times):.1f}",
            "gmac_s": f"{3 * HIDDEN * WIDTH * TOP_K * tokens / ours / 1e9:.1f}",
        }
        if tokens == 1:
            row["gb_s"] = f"{block.bytes_per_slot * TOP_K / ours / 1e9:.1f}"
            row["of_bandwidth"] = f"{statistics.median(t[2] / t[0] for t in times):.2f}"
        yield row


def dense(
    name: str, packing: tuple[str, int, int] | None, dtype: mx.Dtype, threads: int, rounds: int
) -> Iterator[dict[str, object]]:
    """An attention-like projection and an output head."""
    for rows, tokens in ((2048, 1), (32768, 1), (2048, 256)):
        parts = _packed(1, rows, HIDDEN, packing, dtype, rows)
        product = DenseProduct(parts, packing, threads=threads)
        weight = {n: a[0].astype(mx.float32) if a.dtype == mx.bfloat16 else a[0] for n, a in parts.items()}
        x = mx.random.normal((tokens, HIDDEN), key=mx.random.key(tokens))
        mx.eval(weight, x)

        def stock(x: mx.array, weight: dict[str, mx.array] = weight) -> mx.array:
            if packing is None:
                return x @ weight["weight"].T
            return mx.quantized_matmul(
                x,
                weight["weight"],
                weight["scales"],
                weight["biases"],
                group_size=packing[2],
                bits=packing[1],
            )

        times = []
        for _ in range(1 if tokens > 1 else max(3, rounds // 2)):
            ours = sum(_seconds(product, x) for _ in range(5)) / 5
            times.append((ours, _seconds(stock, x)))
        ours = statistics.median(t[0] for t in times)
        yield {
            "what": f"dense {rows} × {HIDDEN}, {name}",
            "tokens": tokens,
            "native_us": f"{ours * 1e6:.0f}",
            "stock_us": f"{statistics.median(t[1] for t in times) * 1e6:.0f}",
            "speedup": f"{statistics.median(t[1] / t[0] for t in times):.1f}",
            "gmac_s": f"{rows * HIDDEN * tokens / ours / 1e9:.1f}",
        }


def _packed(
    slots: int, rows: int, columns: int, packing: tuple[str, int, int] | None, dtype: mx.Dtype, key: int
) -> dict[str, mx.array]:
    weight = (mx.random.normal((slots, rows, columns), key=mx.random.key(key)) * 0.03).astype(dtype)
    parts = {"weight": weight}
    if packing is not None:
        mode, bits, group = packing
        parts = dict(
            zip(("weight", "scales", "biases"), mx.quantize(weight, group, bits, mode=mode), strict=False)
        )
    mx.eval(parts)
    return parts


def _seconds(work: Callable[[mx.array], mx.array], argument: mx.array) -> float:
    began = time.perf_counter()
    mx.eval(work(argument))
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(run_command("bench_kernels", main))
