"""Figure 3: decoding with a bank of 50, 25 and 12.5 % of the experts, against all of them in memory.

    uv run python tools/bench/bench_bank.py [--inputs DIR] [--checkpoint big] [--rounds 5] [--tokens 64]

`of_model` is how near decoding comes to t = t_compute + bytes read / bandwidth: t_compute is the time of a
token with every expert in memory, and the bandwidth that of the engine's own reader on random records of the
same files, in batches as large as a layer's misses, all measured in the same round. `direct` reads past the
page cache, so that every miss comes from the disk; `page cache` reads files that are in memory. Appends to
docs/bench/bank.csv.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import page_cache
from bench_inputs import Inputs, figure_parser
from bench_record import append_rows
from contestants import Contestant, Setting, median, share_gb, spread, unread_variables
from quietness import Quietness

from mach.commands.process import run_command
from mach.io.checkpoint_path import resolve_checkpoint

SHARES = (0.5, 0.25, 0.125)
READS = {"direct": {"LME_DIRECT_IO": "1"}, "page cache": {"LME_DIRECT_IO": "0"}}
VARIANTS: dict[str, dict[str, str]] = {
    "no in-graph dispatch": {"LME_IN_GRAPH_DISPATCH": "0"},
    "no prefetch": {"LME_ASYNC_PREFETCH": "0"},
    "prefetch": {"LME_ASYNC_PREFETCH": "1"},
    "policy lru": {"LME_BANK_EVICTION_POLICY": "lru"},
    "policy lfu": {"LME_BANK_EVICTION_POLICY": "lfu"},
    "policy lookahead": {"LME_BANK_EVICTION_POLICY": "lookahead"},
}
"""What is switched off or exchanged, in the bank of a quarter."""


@dataclass(frozen=True, slots=True)
class Case:
    """One setting that is measured against the resident one."""

    what: str
    reads: str
    share: float
    contestant: Contestant


def main(arguments: Sequence[str]) -> int:
    """Measure, print a table, append the CSV."""
    parser = figure_parser(__doc__, rounds=5, tokens=64, checkpoint="big")
    parser.add_argument("--variants", action="store_true", help="switches and policies instead of sizes")
    options = parser.parse_args(arguments)
    inputs, quietness = Inputs.open(options.inputs), Quietness()
    setting = inputs.setting(options.checkpoint)
    page_cache.fill(resolve_checkpoint(setting.checkpoint) / "expert_sidecar")
    with ExitStack() as stack:
        resident = stack.enter_context(Contestant("resident", setting))
        assert resident.loaded["whole"], "the machine has memory for twice the experts"
        total = resident.loaded["total_bytes"]
        cases = [
            Case(what, reads, share, stack.enter_context(contestant))
            for what, reads, share, contestant in _contestants(setting, total, options.variants)
        ]
        rows = _measured(resident, cases, options.rounds, options.tokens)
    append_rows(
        "bank_variants" if options.variants else "bank",
        rows,
        replacing=("checkpoint",),
        directory=options.output,
        checkpoint=options.checkpoint,
        tokens=options.tokens,
        others=quietness.others(),
    )
    return 0


def _contestants(setting: Setting, total: int, variants: bool) -> list[tuple[str, str, float, Contestant]]:
    if not variants:
        return [
            ("as shipped", reads, share, _contestant(setting, total, share, environment))
            for share in SHARES
            for reads, environment in READS.items()
        ]
    made = []
    for what, change in ({"as shipped": {}} | VARIANTS).items():
        if unread := unread_variables(change):
            print(f"{what}: left out, as mach-store does not read {unread}", file=sys.stderr)
            continue
        for reads, environment in READS.items():
            made.append((what, reads, 0.25, _contestant(setting, total, 0.25, {**environment, **change})))
    return made


def _contestant(setting: Setting, total: int, share: float, environment: Mapping[str, str]) -> Contestant:
    return Contestant(f"{share}", replace(setting, bank_gb=share_gb(total, share)), environment)


def _measured(
    resident: Contestant, cases: Sequence[Case], rounds: int, tokens: int
) -> list[dict[str, object]]:
    """Rounds in which every contestant answers once; the first one fills the banks and is dropped."""
    base: list[dict[str, Any]] = []
    told: list[list[dict[str, Any]]] = [[] for _ in cases]
    for number in range(rounds + 1):
        alone = resident.answer(prompt=16, tokens=tokens, number=number)
        base.append(alone)
        for place in range(len(cases)):
            turn = (place + number) % len(cases)
            contestant = cases[turn].contestant
            answer = contestant.answer(prompt=16, tokens=tokens, number=number)
            passes = answer["steps"] * resident.loaded["layers"]
            batch = max(1, round(answer["misses"] / passes))
            answer["gb_s"] = contestant.read(records=batch * 40, batch=batch)
            told[turn].append(answer | _against_model(answer, alone))
    resident_row = {
        "what": "as shipped",
        "reads": "none",
        "bank_percent": "100",
        "tokens_per_second": f"{median(base[1:], 'decode_tps'):.1f}",
        "of_resident": "1.000",
        "peak_mb": f"{base[-1]['peak_bytes'] / 1e6:.0f}",
    }
    return [resident_row, *(_row(case, answers[1:]) for case, answers in zip(cases, told, strict=True))]


def _against_model(answer: Mapping[str, Any], alone: Mapping[str, Any]) -> dict[str, float]:
    """Ratios within one round."""
    token = 1 / answer["decode_tps"]
    reading = answer["bytes_read"] / answer["steps"] / (answer["gb_s"] * 1e9)
    return {
        "of_resident": answer["decode_tps"] / alone["decode_tps"],
        "of_model": (1 / alone["decode_tps"] + reading) / token,
        "waited": answer["wait_seconds"] / answer["decode_seconds"],
    }


def _row(case: Case, answers: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    needed = sum(answer["hits"] + answer["misses"] for answer in answers)
    per_token = statistics.median(answer["bytes_read"] / answer["steps"] for answer in answers)
    return {
        "what": case.what,
        "reads": case.reads,
        "bank_percent": f"{case.share * 100:g}",
        "tokens_per_second": f"{median(answers, 'decode_tps'):.1f}",
        "of_resident": f"{median(answers, 'of_resident'):.3f}",
        "hit_rate": f"{sum(answer['hits'] for answer in answers) / needed:.3f}",
        "mb_per_token": f"{per_token / 1e6:.2f}",
        "read_gb_s": f"{median(answers, 'gb_s'):.2f}",
        **spread("of_model", [answer["of_model"] for answer in answers]),
        "waited": f"{median(answers, 'waited'):.3f}",
        **_prefetch(answers),
        "peak_mb": f"{max(answer['peak_bytes'] for answer in answers) / 1e6:.0f}",
    }


def _prefetch(answers: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Experts read on suspicion, per token, and the part of them that was asked for."""
    prefetched = sum(answer.get("prefetched", 0) for answer in answers)
    if not prefetched:
        return {"prefetched": "", "prefetch_used": ""}
    used = sum(answer["prefetch_used"] for answer in answers)
    steps = sum(answer["steps"] for answer in answers)
    return {"prefetched": f"{prefetched / steps:.2f}", "prefetch_used": f"{used / prefetched:.3f}"}


if __name__ == "__main__":
    sys.exit(run_command("bench_bank", main))
