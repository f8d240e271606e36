"""Owns the refusal, with the numbers, to load what does not fit into the free memory."""

from __future__ import annotations

from collections.abc import Mapping

from mach_store.errors import MemoryBudgetError
from mach_store.machine_memory import available_bytes

RESERVE_BYTES = 512 << 20
"""Kept free for the interpreter, the libraries, activations and KV (docs/architecture.md)."""


def refuse_if_too_big(checkpoint: str, parts: Mapping[str, int], advice: str) -> None:
    """Raise unless `parts` (label → bytes) and the reserve fit.

    Raises:
        MemoryBudgetError: they do not; the message has every number and `advice`.
    """
    needed = sum(parts.values()) + RESERVE_BYTES
    available = available_bytes()
    if needed <= available:
        return
    listed = ", ".join(f"{label} ({size / 1e9:.2f} GB)" for label, size in parts.items())
    raise MemoryBudgetError(
        f"{checkpoint}: {listed} and {RESERVE_BYTES / 1e9:.2f} GB for everything else need "
        f"{needed / 1e9:.2f} GB, but {available / 1e9:.2f} GB are free: {advice}",
        needed=needed,
        available=available,
    )
