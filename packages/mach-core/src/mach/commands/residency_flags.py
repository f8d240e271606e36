"""Owns the flags that say where experts are kept, shared by whoever loads a model."""

from __future__ import annotations

import argparse


def add_residency_flags(parser: argparse._ActionsContainer) -> None:
    """`--streaming` and `--no-streaming`: `options.residency` is `streaming`, `stacked` or None."""
    residency = parser.add_mutually_exclusive_group()
    residency.add_argument(
        "--streaming",
        dest="residency",
        action="store_const",
        const="streaming",
        help="experts are read from disk into a bounded bank",
    )
    residency.add_argument(
        "--no-streaming",
        dest="residency",
        action="store_const",
        const="stacked",
        help="every expert stays in memory (stacked layout only)",
    )


def refuse_beside_openai(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the program, with argparse's status, if a flag asks for what `--backend openai` has not.

    Args:
        parser: with `add_residency_flags` and `budget_flags.add_budget_flags`.
        options: what it has read, with `--backend openai`.
    """
    streaming = (options.residency, options.expert_cache_gb, options.prefill_scratch_gb)
    if any(value is not None for value in streaming):
        parser.error(
            "--backend openai runs mlx-lm's own model: leave out --streaming, --no-streaming, "
            "--expert-cache-gb and --prefill-scratch-gb"
        )
