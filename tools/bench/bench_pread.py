"""Compares mach-native's batched reads with a plain O_DIRECT read of the same records, cold, in one run.

Both read the same random records with the same number of threads. The plain read puts each record into one
aligned buffer per thread and does nothing with it, once in ordinary pages and once in huge pages, which is as
fast as this disk goes; the native read scatters the record's segments into the slots of nine MLX arrays, with
and without checking its CRC-32. Every round runs all variants in a random order; the ratio is the median of
the rounds' own ratios, because the speed of a shared disk drifts between rounds. Linux only.

    python tools/bench/bench_pread.py [--folder DIR] [--csv docs/bench/pread.csv]
"""

import argparse
import csv
import datetime
import os
import platform
import random
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
from plain_reads import read_plain

from lme_mlx_pread_ext import ScatterPlan, build_info

RECORD = 2 << 20
SEGMENTS = [655_360, 32_768, 8_192] * 2 + [663_552, 32_768, 8_192]  # gate, up, down: weight, scales, biases
THREADS = (1, 2, 4, 8)
PLAIN = "plain O_DIRECT"
HUGE = "plain O_DIRECT, huge pages"


def write_records(path: Path, count: int) -> list[int]:
    """Write `count` records of random bytes and return their CRC-32."""
    crcs = []
    with path.open("wb") as file:
        for _ in range(count):
            record = os.urandom(RECORD)
            crcs.append(zlib.crc32(record))
            file.write(record)
        file.flush()
        os.fsync(file.fileno())
    return crcs


def _places(fd: int, order: list[int]) -> list[tuple[int, int]]:
    return [(fd, number * RECORD) for number in order]


def read_native(
    plan: ScatterPlan, fd: int, order: list[int], threads: int, crcs: list[int] | None, direct: bool
) -> None:
    """Read records in batches as large as the bank."""
    for first in range(0, len(order), plan.slots):
        part = order[first : first + plan.slots]
        plan.read(
            range(len(part)),
            [fd] * len(part),
            [number * RECORD for number in part],
            None if crcs is None else [crcs[number] for number in part],
            threads=threads,
            direct=direct,
        )


def measure(
    path: Path, crcs: list[int], rounds: int, batch: int, share: float
) -> dict[tuple[str, int], list[float]]:
    """GB/s of every (variant, threads), one number per round."""
    banks = [mx.zeros((batch, size), dtype=mx.uint8) for size in SEGMENTS]
    mx.eval(banks)
    plan = ScatterPlan(banks, SEGMENTS, [False] * len(SEGMENTS))
    cached = os.open(path, os.O_RDONLY)
    direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
    variants: dict[str, Callable[[list[int], int], None]] = {
        PLAIN: lambda order, threads: read_plain(_places(direct, order), RECORD, threads, huge=False),
        HUGE: lambda order, threads: read_plain(_places(direct, order), RECORD, threads),
        "native direct, crc": lambda order, threads: read_native(plan, direct, order, threads, crcs, True),
        "native buffered, crc": lambda order, threads: read_native(plan, cached, order, threads, crcs, False),
        "native direct": lambda order, threads: read_native(plan, direct, order, threads, None, True),
        "native buffered": lambda order, threads: read_native(plan, cached, order, threads, None, False),
    }
    speeds: dict[tuple[str, int], list[float]] = {
        (what, threads): [] for threads in THREADS for what in variants
    }
    # One unmeasured pass: threads start, buffers are allocated, the banks' pages are touched.
    for run in variants.values():
        run(list(range(min(batch, len(crcs)))), max(THREADS))
    for _ in range(rounds):
        for threads in random.sample(THREADS, len(THREADS)):
            order = random.sample(range(len(crcs)), int(len(crcs) * share))
            for what in random.sample(list(variants), len(variants)):
                os.posix_fadvise(cached, 0, 0, os.POSIX_FADV_DONTNEED)
                began = time.perf_counter()
                variants[what](order, threads)
                speeds[what, threads].append(len(order) * RECORD / (time.perf_counter() - began) / 1e9)
    os.close(cached)
    os.close(direct)
    return speeds


def ratio_of(values: list[float], base: list[float]) -> float:
    """Median of the rounds' own ratios."""
    return statistics.median(value / other for value, other in zip(values, base, strict=True))


def rows_of(speeds: dict[tuple[str, int], list[float]], records: int) -> list[dict[str, str | int]]:
    """One row per variant and number of threads."""
    info = build_info()
    rows: list[dict[str, str | int]] = []
    for (what, threads), values in speeds.items():
        rows.append(
            {
                "date": datetime.date.today().isoformat(),
                "nproc": os.cpu_count() or 0,
                "kernel": f"{platform.system()} {platform.release().split('-')[0]}",
                "build": f"{info['compiler']}, crc32 {info['crc32']}, mlx {info['mlx']}",
                "what": what,
                "threads": threads,
                "records": records,
                "record_bytes": RECORD,
                "segments": len(SEGMENTS),
                "rounds": len(values),
                "gb_per_s": f"{statistics.median(values):.3f}",
                "gb_per_s_min": f"{min(values):.3f}",
                "gb_per_s_max": f"{max(values):.3f}",
                "ratio_to_plain": f"{ratio_of(values, speeds[PLAIN, threads]):.3f}",
                "ratio_to_huge": f"{ratio_of(values, speeds[HUGE, threads]):.3f}",
            }
        )
    return rows


def main() -> None:
    """Write the file, measure, print a table and write the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on the disk to measure; not a tmpfs")
    parser.add_argument("--csv", type=Path, help="file to write")
    parser.add_argument("--records", type=int, default=512, help="2 MiB records in the file (512: 1 GiB)")
    parser.add_argument("--share", type=float, default=0.5, help="share of them that each measurement reads")
    parser.add_argument("--batch", type=int, default=64, help="records per native call")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.records > 1024:
        parser.error("--records: at most 1024 (2 GiB)")

    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="bench_pread_") as folder:
        path = Path(folder) / "records.bin"
        crcs = write_records(path, arguments.records)
        speeds = measure(path, crcs, arguments.rounds, arguments.batch, arguments.share)
    rows = rows_of(speeds, int(arguments.records * arguments.share))

    print(f"{'':28}{'threads':>8}{'GB/s':>8}{'min':>8}{'max':>8}{'/plain':>8}{'/huge':>8}")
    for row in rows:
        print(
            f"{row['what']:28}{row['threads']:>8}{row['gb_per_s']:>8}{row['gb_per_s_min']:>8}{row['gb_per_s_max']:>8}"
            f"{row['ratio_to_plain']:>8}{row['ratio_to_huge']:>8}"
        )
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
