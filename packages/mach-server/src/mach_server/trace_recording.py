"""Owns the server's recording of routes: its file's name, its start with the engine, its end, its log lines.

Nothing that goes wrong with it harms an answer: the recording ends, the log and `/v1/cache/stats` say why.
"""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from typing import Any

from mach_decode.engine import Engine
from mach_decode.trace_recorder import TraceRecorder, record_routes
from mach_store.errors import TraceWriteError
from mach_store.trace.trace_writer import refuse_taken

log = logging.getLogger("mach.server")

DEFAULT_MEGABYTES = 256


class TraceRecording:
    """One server's recording, from the load of its engine to its end."""

    def __init__(self, path: str, max_bytes: int) -> None:
        """Choose the file; nothing is written yet.

        Args:
            path: the trace to make, or a directory, in which it gets a name of its own.
            max_bytes: the file never becomes larger.

        Raises:
            TraceWriteError: there is a trace of that name, finished or not.
        """
        if os.path.isdir(path):
            # A server that is started again and again by the same command should find a free name.
            moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
            path = os.path.join(path, f"mach-serve-{moment}-{os.getpid()}.trace")
        refuse_taken(path)
        self._path, self._max_bytes = path, max_bytes
        self._recorder: TraceRecorder | None = None

    def begin(self, engine: Engine) -> None:
        """Record every answer of `engine`, which was just loaded; in its thread.

        Raises:
            RoutesUnseenError: the experts are the model's own.
            TraceWriteError: the file cannot be written.
        """
        self._recorder = record_routes(
            engine, self._path, "mach-serve", max_bytes=self._max_bytes, told=_tell
        )

    def finish(self) -> None:
        """End the recording, once the engine's thread has ended; the trace gets its name."""
        if self._recorder is None:
            return
        try:
            self._recorder.finish()
        except TraceWriteError as error:
            _tell(str(error))

    def as_dict(self) -> dict[str, Any] | None:
        """What `/v1/cache/stats` reports as `trace_recording`; None before the load."""
        return None if self._recorder is None else self._recorder.as_dict()


def _tell(reason: str) -> None:
    log.warning("the recording of routes has ended: %s", reason)
