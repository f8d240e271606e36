"""Owns which columns of which CSV file docs/benchmarks.md shows, and what they should reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """A table of the page.

    Attributes:
        csv: name of the file.
        columns: column of the file → head of the table.
        where: column → what it must be.
    """

    csv: str
    columns: Mapping[str, str]
    where: Mapping[str, str] = {}


class Target(NamedTuple):
    """What the figures should reach.

    Attributes:
        figure: number and what is measured.
        least: the target.
        csv: name of the file.
        column: that has the ratio.
        where: column → what it must be.
        label: columns that tell the rows apart; `best` takes only the best of them.
    """

    figure: str
    least: float
    csv: str
    column: str
    where: Mapping[str, str]
    label: Sequence[str] = ()
    best: bool = False


_BANK = {
    "what": "",
    "reads": "reads",
    "bank_percent": "bank, %",
    "tokens_per_second": "tokens/s",
    "of_resident": "of resident",
    "hit_rate": "hit rate",
    "mb_per_token": "MB/token",
    "read_gb_s": "reader, GB/s",
    "of_model": "of model",
    "of_model_low": "lowest",
    "of_model_high": "highest",
    "waited": "share waited",
    "prefetched": "prefetched/token",
    "prefetch_used": "of them used",
    "peak_mb": "peak, MB",
}
_DECODE = {
    "what": "",
    "tokens_per_second": "tokens/s",
    "ratio": "of mlx-lm's best",
    "ratio_low": "lowest",
    "ratio_high": "highest",
    "of_stacked": "of stacked",
    "peak_mb": "peak, MB",
}
_DISK = {
    "what": "",
    "ceiling_gb_s": "O_DIRECT alone, GB/s",
    "decode_gb_s": "decoding, GB/s",
    "of_ceiling": "ratio",
    "of_ceiling_low": "lowest",
    "of_ceiling_high": "highest",
    "waited_of_ceiling": "ratio while waiting",
    "waited": "share waited",
    "cpus": "CPUs busy",
    "tokens_per_second": "tokens/s",
}
_PREFILL = {
    "what": "",
    "prompt_tokens": "prompt",
    "tokens_per_second": "tokens/s",
    "of_resident": "of resident",
    "of_resident_low": "lowest",
    "of_resident_high": "highest",
    "gb_read": "GB read",
    "peak_mb": "peak, MB",
}
TABLES = {
    "kernels": Table(
        "kernels",
        {
            "what": "",
            "tokens": "tokens",
            "native_us": "native, µs",
            "stock_us": "stock, µs",
            "speedup": "times stock",
            "gb_s": "GB/s",
            "of_bandwidth": "of bandwidth",
        },
    ),
    "llama": Table(
        "llama",
        {
            "what": "",
            "decode_per_second": "decode, tokens/s",
            "of_llama_cpp": "of llama.cpp",
            "of_llama_cpp_low": "lowest",
            "of_llama_cpp_high": "highest",
            "prefill_per_second": "prefill, tokens/s",
            "prefill_of_llama_cpp": "of llama.cpp",
        },
    ),
    "decode-pico": Table("decode", _DECODE, {"checkpoint": "mach-pico"}),
    "decode-big": Table("decode", _DECODE, {"checkpoint": "big"}),
    "bank-pico": Table("bank", _BANK, {"checkpoint": "mach-pico"}),
    "bank-big": Table("bank", _BANK, {"checkpoint": "big"}),
    "variants-pico": Table("bank_variants", _BANK, {"checkpoint": "mach-pico"}),
    "variants-big": Table("bank_variants", _BANK, {"checkpoint": "big"}),
    "limit": Table(
        "limit",
        {
            "what": "",
            "bank_percent": "bank, %",
            "limit": "limit",
            "outcome": "outcome",
            "tokens_per_second": "tokens/s",
            "peak_mb": "peak, MB",
        },
    ),
    "disk-big": Table("disk", _DISK, {"checkpoint": "big"}),
    "prefill-pico": Table("prefill", _PREFILL, {"checkpoint": "mach-pico"}),
    "prefill-big": Table("prefill", _PREFILL, {"checkpoint": "big"}),
    "growth": Table(
        "growth",
        {
            "axis": "axis",
            "value": "value",
            "bank_percent": "bank, %",
            "bank_mb": "bank, MB",
            "tokens_per_second": "tokens/s",
            "prefill_per_second": "prefill, tokens/s",
            "hit_rate": "hit rate",
            "peak_mb": "peak, MB",
        },
    ),
}
_ROUTED = {"what": "routed experts, affine 4-bit", "tokens": "1"}
_STREAMING = {"what": "mach, streaming, bank of 100 %"}
TARGETS = (
    Target("1: routed experts, affine 4-bit, over stock", 10, "kernels", "speedup", _ROUTED),
    Target("1: the same, of the memory bandwidth", 0.5, "kernels", "of_bandwidth", _ROUTED),
    Target("1: decode, over mlx-lm's best", 5, "decode", "ratio", _STREAMING, ("checkpoint",)),
    Target(
        "1: decode, over llama.cpp",
        0.5,
        "llama",
        "of_llama_cpp",
        {"what": "mach, streaming, all resident"},
    ),
    Target("2: streaming over stacked", 1, "decode", "of_stacked", _STREAMING, ("checkpoint",)),
    Target("2: stacked over mlx-lm's best", 1, "decode", "ratio", {"what": "mach, stacked"}, ("checkpoint",)),
    *(
        Target(
            f"3: bank of {percent} %, of the model",
            0.85,
            "bank",
            "of_model",
            {"bank_percent": percent},
            ("checkpoint", "reads"),
        )
        for percent in ("50", "25", "12.5")
    ),
    Target(
        "4: disk, of O_DIRECT alone", 0.95, "disk", "of_ceiling", {"checkpoint": "big"}, ("what",), best=True
    ),
    Target(
        "5: prefill at 12.5 %, of resident",
        0.8,
        "prefill",
        "of_resident",
        {"what": "bank of 12.5 %, page cache"},
        ("checkpoint",),
    ),
)
