"""Owns the bar that long commands draw on a terminal's stderr: plain ASCII, one line, silent elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import NamedTuple, TextIO

_INTERVAL = 0.1
_MOST_CELLS = 40


class Unit(NamedTuple):
    """What a bar counts: `label` of its speed, and how many make one of that."""

    label: str
    size: int


BYTES = Unit("MB/s", 1_000_000)
TOKENS = Unit("tok/s", 1)


class ProgressBar:
    """One line that is drawn over; use as a context manager, so that it ends with a new line."""

    def __init__(self, stream: TextIO | None = None, *, unit: Unit = BYTES, quiet: bool = False) -> None:
        """Draw on `stream` (stderr) if it is a terminal and not to be `quiet`, at most ten times a second."""
        self._stream = sys.stderr if stream is None else stream
        self._active = self._stream.isatty() and not quiet
        self._unit = unit
        self._start = 0.0
        self._total: int | None = None
        self._last = 0.0
        self._width = 0

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the line, so that others may write; the next update begins a new one."""
        if self._width:
            print(file=self._stream, flush=True)
        self._width, self._total = 0, None

    def update(self, label: str, done: int, total: int, taken_up: int = 0) -> None:
        """Draw `label` and how far `done` of `total` are, with the speed and the time left.

        Those of `done` that were `taken_up` from an earlier run say nothing of the speed, and another `total`
        begins a new measurement of it.
        """
        if not self._active:
            return
        now = time.monotonic()
        if self._total != total:
            self._start, self._total, self._last = now, total, 0.0
        if now - self._last < _INTERVAL and done < total:
            return
        self._last = now
        fresh, columns = done - taken_up, self._columns()
        line = bar_line(label, done, total, fresh, now - self._start, columns, self._unit)
        print("\r" + line.ljust(self._width), end="", file=self._stream, flush=True)
        self._width = len(line)

    def _columns(self) -> int:
        return shutil.get_terminal_size().columns - 1


def bar_line(
    label: str, done: int, total: int, fresh: int, seconds: float, columns: int, unit: Unit = BYTES
) -> str:
    """`layer 3 of 48 [#####-----]  41% 812 MB/s 1:23 left`, at most `columns` wide.

    Args:
        label: what is being done.
        done: bytes or tokens that are done.
        total: of so many.
        fresh: those of `done` that this run did, in `seconds`.
        seconds: since the run began.
        columns: of the terminal; the bar gives way first, then the line is cut.
        unit: what is counted.
    """
    share = done / total if total else 1.0
    speed = fresh / seconds if seconds > 0 else 0.0
    figures = f"{100 * share:3.0f}% {speed / unit.size:.0f} {unit.label}"
    if speed > 0:
        left = round((total - done) / speed)
        clock = (
            f"{left // 60}:{left % 60:02d}"
            if left < 3600
            else f"{left // 3600} h {left % 3600 // 60:02d} min"
        )
        figures += f" {clock} left"
    cells = min(_MOST_CELLS, columns - len(label) - len(figures) - 4)
    if cells < 4:
        return f"{label} {figures}"[: max(0, columns)]
    full = int(cells * share)
    return f"{label} [{'#' * full}{'-' * (cells - full)}] {figures}"
