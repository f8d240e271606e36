"""Owns how log records become lines on stderr, as text or JSON, without anybody waiting for their reader.

A process that starts us may leave our stderr unread. Its pipe then fills, and a write to it blocks: on the
event loop that would stop the server. So a thread of its own writes, and what it cannot keep up with is
dropped and counted.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

LogFormat = Literal["text", "json"]

CAPACITY = 10_000
"""Lines that may wait to be written."""

CLOSING_SECONDS = 1.0
"""How long the end waits for the last lines to be read."""

REQUESTS = "mach.server.requests"
"""The logger with one record for each request (`request_log`)."""

MEMORY = "mach.memory"
"""The logger of what is done about memory (`mach_decode.memory_watch`)."""


class TextLines(logging.Formatter):
    """`request time=… key=value …` for requests; `mach-serve: LEVEL: message` for all else."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, or more for an exception."""
        facts = _facts(record)
        if facts is not None:
            return " ".join(["request", f"time={_time(record)}", *(f"{k}={v}" for k, v in facts.items())])
        return super().format(record)


class JsonLines(logging.Formatter):
    """One JSON object for each record."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        told: dict[str, Any] = {"time": _time(record), "level": record.levelname.lower()}
        facts = _facts(record)
        if facts is not None:
            return json.dumps({**told, "event": "request", **facts})
        told |= {"event": "message", "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told)


class LogOutput(logging.Handler):
    """Writes records to a stream in a thread of its own.

    Attributes:
        dropped: lines that were given up because the stream's reader was too far behind.
    """

    def __init__(self, stream: TextIO, form: LogFormat, capacity: int = CAPACITY) -> None:
        """Args: stream: where lines go; form: how they look; capacity: lines that may wait."""
        super().__init__()
        self.setFormatter(
            JsonLines() if form == "json" else TextLines("mach-serve: %(levelname)s: %(message)s")
        )
        self.dropped = 0
        self._stream, self._capacity = stream, capacity
        self._lines: deque[str] = deque()
        self._arrived = threading.Event()
        self._ending = False
        # A daemon: a pipe that nobody reads must not keep the process alive.
        self._thread = threading.Thread(target=self._write, name="mach-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record's line."""
        if len(self._lines) >= self._capacity:
            self.dropped += 1
            return
        self._lines.append(self.format(record) + "\n")
        self._arrived.set()

    def close(self) -> None:
        """Write what waits, for at most `CLOSING_SECONDS`."""
        self._ending = True
        self._arrived.set()
        self._thread.join(CLOSING_SECONDS)
        super().close()

    def _write(self) -> None:
        told = 0
        while not self._ending or self._lines:
            self._arrived.wait()
            if not self._ending:
                self._arrived.clear()
            try:
                while self._lines:
                    self._stream.write(self._lines.popleft())
                if self.dropped > told:
                    self._stream.write(self._loss(self.dropped - told))
                    told = self.dropped
                self._stream.flush()
            except (OSError, ValueError):  # the reader, or the stream, is gone: nobody is left to tell
                self._capacity = 0
                self._lines.clear()
                return

    def _loss(self, lines: int) -> str:
        told = {"name": "mach.server", "levelname": "WARNING", "msg": f"{lines} log lines were dropped"}
        return self.format(logging.makeLogRecord(told)) + "\n"


@contextmanager
def logging_to(stream: TextIO, form: LogFormat) -> Iterator[None]:
    """Log to `stream` while the block runs: all warnings, each request, and what is done about memory."""
    output, root = LogOutput(stream, form), logging.getLogger()
    told = [logging.getLogger(name) for name in (REQUESTS, MEMORY)]
    levels = [logger.level for logger in told]
    root.addHandler(output)
    for logger in told:
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(told, levels, strict=True):
            logger.setLevel(level)
        root.removeHandler(output)
        output.close()


def _facts(record: logging.LogRecord) -> dict[str, Any] | None:
    return getattr(record, "request_facts", None)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
