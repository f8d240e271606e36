"""Owns the log lines of requests that come many times a second: the first in full, the others as one.

A line for each of a thousand requests a second takes more of the event loop than their answers do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from mach_server.request_record import RequestRecord

SECONDS = 1.0
"""How long requests like the first are counted only."""

WriteLine = Callable[[dict[str, Any]], None]


class FoldedLines:
    """Lines of requests of which one is like another; used on the event loop alone."""

    def __init__(self, write: WriteLine) -> None:
        """Args: write: takes a line's facts."""
        self._write = write
        self._repeated: dict[tuple[str, str, int | None], int] = {}

    def add(self, record: RequestRecord) -> None:
        """Tell a request that has been answered, or count it to the one like it that was just told."""
        kind = (record.method, record.endpoint, record.status)
        if kind in self._repeated:
            self._repeated[kind] += 1
            return
        self._write(record.facts())
        self._repeated[kind] = 0
        asyncio.get_running_loop().call_later(SECONDS, self._end, kind)

    def flush(self) -> None:
        """Tell what has been counted and not told."""
        for kind in tuple(self._repeated):
            self._end(kind)

    def _end(self, kind: tuple[str, str, int | None]) -> None:
        repeated = self._repeated.pop(kind, 0)
        if repeated:
            method, endpoint, status = kind
            self._write({"method": method, "endpoint": endpoint, "status": status, "repeated": repeated})
