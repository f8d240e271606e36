"""Owns `mach trace record`: prompts in, a routing trace out, and a line on what the bank made of the run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from mach.commands.progress_bar import TOKENS, ProgressBar
from mach.commands.residency_flags import add_residency_flags
from mach.errors import CommandError
from mach_cli.trace_prompts import read_prompts
from mach_decode.engine import Engine, EngineConfig
from mach_decode.request import GenerationRequest
from mach_decode.sampling import SamplingParams
from mach_decode.trace_recorder import TraceRecorder, record_routes

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's flags."""
    parser = commands.add_parser(
        "record",
        help="answer prompts and write down which experts each token was routed to",
        description="Answer prompts, one after another, and record the routes of every pass. The answers are "
        "not shown, and the trace holds no text.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint", help="checkpoint directory, installed name (mach-pico) or hub repository"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="trace to make; nothing may be there")
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="text to continue; repeatable"
    )
    prompts.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="a prompt on each line; JSON strings if the name ends in .jsonl",
    )
    parser.add_argument("--chat", action="store_true", help="apply the checkpoint's chat template")
    parser.add_argument(
        "--max-tokens", type=int, default=256, metavar="N", help="tokens per answer at most (256)"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (0)")
    parser.add_argument("--seed", type=int, default=0, help="of the first answer; each has the next (0)")
    add_residency_flags(parser)
    parser.add_argument(
        "--expert-cache-gb", type=float, metavar="GB", help="expert bank budget in 10^9 bytes (streaming)"
    )
    parser.add_argument(
        "--limit-mb", type=float, metavar="MB", help="end when the trace has so many 10^6 bytes (no limit)"
    )
    parser.add_argument("--json", action="store_true", help="say what was done as JSON")
    parser.set_defaults(command=record)


def record(options: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        MachError: a checkpoint, a budget, a prompt or the disk refuses.
        CommandError: a flag's value cannot be.
    """
    max_bytes = None
    if options.limit_mb is not None:
        if not 0 < options.limit_mb < 1e9:
            raise CommandError(f"--limit-mb {options.limit_mb}: must be a positive number of 10⁶ bytes")
        max_bytes = int(options.limit_mb * 1e6)
    prompts = options.prompt or read_prompts(options.prompts)
    with ProgressBar() as bar:
        config = EngineConfig(
            checkpoint=options.checkpoint,
            expert_residency=options.residency,
            expert_cache_gb=options.expert_cache_gb,
            listener=bar.update,
        )
        engine = Engine.load(config)
    try:
        requests = [_request(engine, options, text, number) for number, text in enumerate(prompts)]
        recorder = record_routes(engine, options.out, "mach trace record", max_bytes=max_bytes)
        try:
            _answer(engine, requests, recorder, options.max_tokens)
        except BaseException:
            if recorder.answers == 0:
                recorder.discard()
            raise
        finally:
            if recorder.answers:
                recorder.finish()
        print(_summary(engine, recorder, as_json=options.json))
    finally:
        engine.close()
    if recorder.state == "error":
        raise CommandError(recorder.reason)
    return 0


def _request(engine: Engine, options: argparse.Namespace, text: str, number: int) -> GenerationRequest:
    tokens = engine.render_chat([{"role": "user", "content": text}]) if options.chat else engine.encode(text)
    sampling = SamplingParams(temperature=options.temperature, seed=options.seed + number)
    return GenerationRequest(prompt=tokens, max_tokens=options.max_tokens, sampling=sampling)


def _answer(engine: Engine, requests: list[GenerationRequest], recorder: TraceRecorder, most: int) -> None:
    """Args: most: tokens of an answer."""
    total = sum(len(request.prompt) + most for request in requests)
    done = short = 0  # tokens, and those that answers had less than they might have
    with ProgressBar(unit=TOKENS) as bar:
        for number, request in enumerate(requests, 1):
            if recorder.state != "recording":
                break
            label, answered = f"prompt {number} of {len(requests)}", 0
            for event in engine.generate(request):
                answered += event.token is not None
                bar.update(label, done + event.prefilled + answered, total, short)
            done += len(request.prompt) + most
            short += most - answered
            bar.update(label, done, total, short)


def _summary(engine: Engine, recorder: TraceRecorder, *, as_json: bool) -> str:
    told, totals = recorder.as_dict(), engine.store.totals()
    counts = totals.as_dict()
    if as_json:
        bank = {name: counts[name] for name in ("hits", "misses", "hit_rate", "evictions", "transient_reads")}
        return json.dumps({**told, "residency": engine.store.residency, "bank": bank}, indent=2)
    ended = f" ({recorder.reason})" if recorder.reason else ""
    return (
        f"{told['file']}: {told['answers']} answers, {told['passes']} passes, {told['bytes'] / 1e3:.1f} kB"
        f"{ended}; experts {engine.store.residency}, hit rate {counts['hit_rate']:.4f} "
        f"({totals.hits} hits, {totals.misses} misses)"
    )
