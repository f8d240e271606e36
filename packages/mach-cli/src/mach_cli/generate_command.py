"""Owns `mach-generate`: one prompt, its answer streamed to stdout, its progress and figures on stderr."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

from mach.commands.budget_flags import add_budget_flags
from mach.commands.process import run_command
from mach.commands.progress_bar import TOKENS, ProgressBar
from mach.commands.residency_flags import add_residency_flags, refuse_beside_openai
from mach_decode.engine import UNSWAPPED, Engine, EngineConfig
from mach_decode.request import FinishReason, GenerationFigures, GenerationRequest
from mach_decode.sampling import SamplingParams
from mach_store.machine_memory import peak_rss_bytes


def main(arguments: Sequence[str] | None = None) -> int:
    """Console script; returns the exit status: 0 done, 2 refused, 130 interrupted."""
    return run_command("mach-generate", run, arguments)


def run(arguments: Sequence[str]) -> int:
    """The command itself; what it raises is for its caller to report."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.backend == "openai":
        refuse_beside_openai(parser, options)
        options.residency = UNSWAPPED
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character is no failure
    request_of = SamplingParams(
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
    )
    with ProgressBar(quiet=options.quiet) as bar:
        engine = Engine.load(
            EngineConfig(
                checkpoint=options.model,
                expert_residency=options.residency,
                expert_cache_gb=options.expert_cache_gb,
                memory_gb=options.memory_gb,
                prefill_scratch_gb=options.prefill_scratch_gb,
                kv_cache_gb=options.kv_cache_gb,
                wired_gb=options.wired_gb,
                listener=bar.update,
            )
        )
    residency = engine.store.residency
    try:
        engine.watch_memory()
        if options.chat:
            prompt = engine.render_chat([{"role": "user", "content": options.prompt}])
        else:
            prompt = engine.encode(options.prompt)
        request = GenerationRequest(
            prompt=prompt, max_tokens=options.max_tokens, stop=tuple(options.stop), sampling=request_of
        )
        with ProgressBar(unit=TOKENS, quiet=options.quiet) as bar:
            last = len(prompt) - 1  # with this one the answer begins
            if last:
                bar.update("prompt", 0, last)
            for event in engine.generate(request):
                if event.token is None and event.figures is None:
                    bar.update("prompt", event.prefilled, last)
                    continue
                bar.close()
                print(event.text, end="", flush=True)
                if event.figures is not None and event.finish_reason is not None:
                    print()
                    sys.stdout.flush()
                    if not options.quiet:
                        line = _figures_line(event.figures, event.finish_reason, residency)
                        print(line, file=sys.stderr)
    finally:
        engine.close()
    return 0


def _figures_line(figures: GenerationFigures, reason: FinishReason, residency: str) -> str:
    return (
        f"prompt {figures.prompt_tokens} tokens, {figures.prompt_tokens_per_second:.1f} tok/s; "
        f"decode {figures.completion_tokens} tokens, {_speed(figures)} tok/s; "
        f"first token {figures.first_token_seconds * 1000:.0f} ms; "
        f"experts {residency}{_experts(figures, residency)}; "
        f"peak memory {peak_rss_bytes() / 1e6:.0f} MB; finish {reason}"
    )


def _experts(figures: GenerationFigures, residency: str) -> str:
    """What the expert store did; without one there is nothing to say."""
    if residency == UNSWAPPED:
        return ""
    return (
        f", hit rate {figures.hit_rate:.3f}, {figures.expert_hits} hits, {figures.expert_misses} misses, "
        f"{figures.bytes_read / 1e6:.2f} MB read, {figures.wait_seconds * 1000:.0f} ms waiting for reads, "
        f"{figures.compute_seconds * 1000:.0f} ms computing"
    )


def _speed(figures: GenerationFigures) -> str:
    """Decode speed; a single token, which prefill brings, has none."""
    return f"{figures.decode_tokens_per_second:.1f}" if figures.completion_tokens > 1 else "-"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mach-generate",
        description="Generate text once, without a server. Text goes to stdout, figures to stderr.",
        allow_abbrev=False,
    )
    parser.add_argument("model", help="checkpoint directory, installed name (mach-pico) or hub repository")
    parser.add_argument("--prompt", required=True, help="text to continue, or with --chat the user's message")
    parser.add_argument("--chat", action="store_true", help="apply the checkpoint's chat template")
    parser.add_argument("--max-tokens", type=int, default=256, help="tokens to generate at most (256)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (0)")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus mass; 1 is off (1)")
    parser.add_argument("--top-k", type=int, default=0, help="most likely tokens kept; 0 is off (0)")
    parser.add_argument("--min-p", type=float, default=0.0, help="least relative probability; 0 is off (0)")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="1 is off (1)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text (0)")
    parser.add_argument("--quiet", action="store_true", help="neither progress bars nor figures on stderr")
    parser.add_argument("--stop", action="append", default=[], help="string that ends the text; repeatable")
    add_residency_flags(parser)
    add_budget_flags(parser.add_argument_group("memory"))
    parser.add_argument(
        "--backend",
        choices=("production", "openai"),
        default="production",
        help="openai: any model that mlx-lm has, dense ones too, as mlx-lm runs it (production)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
