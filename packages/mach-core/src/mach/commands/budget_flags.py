"""Owns the flags that bound memory, shared by `mach check`, `mach-serve` and `mach-generate`."""

from __future__ import annotations

import argparse
import math

FLAGS = {
    "--memory-gb": "what everything may take together; what the other flags leave open follows from it "
    "(default: what the machine has free, of which the expert bank takes at most half)",
    "--expert-cache-gb": "the expert bank (streaming; default: all experts, or half of what is free)",
    "--prefill-scratch-gb": "arena that long prompts read experts into (streaming; default: 16 experts)",
    "--kv-cache-gb": "keys and values that a prompt and its answer may hold; longer requests are refused "
    "(default: what the context needs, or what the other parts leave)",
}
"""Flag → help; all in 10⁹ bytes."""
WIRED = ("--wired-gb", "Metal's wired limit; an error where there is no Metal (default there: 9)")


def add_budget_flags(parser: argparse._ActionsContainer, *, loading: bool = True) -> None:
    """Add the flags.

    Args:
        parser: or a group of its flags.
        loading: whether something is loaded: then memory can be wired, and the loader checks the values.
    """
    for flag, text in (*FLAGS.items(), *((WIRED,) if loading else ())):
        kind = float if loading else gigabytes
        parser.add_argument(flag, type=kind, metavar="GB", help=f"{text}; in 10⁹ bytes")


def gigabytes(text: str) -> float:
    """A flag's value.

    Raises:
        ArgumentTypeError: it is no positive number below 10⁶.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of 10^9 bytes")
    return value
