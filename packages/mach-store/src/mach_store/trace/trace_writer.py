"""Owns the writing of a routing trace: block by block into FILE.partial, which a finish renames to FILE."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import BinaryIO

import msgspec

from mach_store.errors import TraceWriteError
from mach_store.sidecar.atomic_directory import fsync_directory
from mach_store.trace import trace_blocks as blocks
from mach_store.trace.trace_events import (
    COUNT,
    AnswerBegan,
    AnswerEnded,
    Event,
    ModelPass,
    encode,
    encoded_bytes,
)
from mach_store.trace.trace_header import Ending, TraceEnding, TraceHeader

BLOCK_BYTES = 64 << 10
"""A block is written once it is so large: what a kill loses at most."""

ENDING_BYTES = 160
"""Kept free below a byte limit for the last block."""

BLOCK_SECONDS = 30.0
"""Nor does a block wait much longer than this, if answers end."""

PARTIAL = ".partial"


def _open_new(path: str) -> BinaryIO:
    return open(path, "xb", buffering=0)


def refuse_taken(path: str) -> None:
    """See that nothing would be written over.

    Raises:
        TraceWriteError: there is a trace `path`, finished or not.
    """
    if os.path.lexists(path):
        raise TraceWriteError(f"{path}: is there already: give another name", path=path)
    if os.path.lexists(path + PARTIAL):
        raise TraceWriteError(
            f"{path}{PARTIAL}: is there already, from a recording that runs or was broken off: give another "
            "name, or move it away",
            path=path + PARTIAL,
        )


class TraceWriter:
    """Appends events to a trace. After an error nothing more is written; what was written stays readable.

    Attributes:
        path: the trace's name once it is finished.
        partial: its name until then.
        nbytes: bytes written so far.
        max_bytes: the file never becomes larger; None is no limit.
        finished: whether the trace has its name.
        full: whether the byte limit keeps the trace from growing.
    """

    def __init__(
        self,
        path: str,
        header: TraceHeader,
        *,
        max_bytes: int | None = None,
        open_new: Callable[[str], BinaryIO] = _open_new,
    ) -> None:
        """Create `path`.partial and write the header.

        Args:
            path: the trace to make.
            header: what it says of itself.
            max_bytes: the file never becomes larger; None is no limit.
            open_new: creates a file that must not exist, unbuffered.

        Raises:
            TraceWriteError: there is a trace of that name, finished or not, or it cannot be written.
        """
        assert not header.contradiction(), header.contradiction()
        self.path, self.partial = path, path + PARTIAL
        self.header = header
        self.nbytes, self.full, self.finished = 0, False, False
        self.max_bytes = max_bytes
        self._blocks = self._answers = self._passes = self._routes = 0
        self._events: list[Event] = []
        self._waiting, self._since = COUNT.size, 0.0
        self._counted = (0, 0, 0)
        refuse_taken(path)
        try:
            self._file = open_new(self.partial)
        except OSError as error:
            raise self._failed(error) from error
        first = blocks.MAGIC + blocks.pack_block(blocks.HEADER, 0, msgspec.json.encode(header))
        if max_bytes is not None and len(first) + ENDING_BYTES > max_bytes:
            self.discard()
            raise TraceWriteError(
                f"{path}: a limit of {max_bytes} bytes does not hold the header: {len(first) + ENDING_BYTES} "
                "are needed",
                path=path,
            )
        try:
            self._write(first)
        except TraceWriteError:
            self.discard()
            raise

    def add(self, event: Event) -> None:
        """Append `event`; it reaches the file with its block.

        Raises:
            TraceWriteError: the disk refused the block, or a pass is too large for any.
        """
        assert not self.full, "whoever writes asks whether there is room"
        size = encoded_bytes(event, self.header)
        if self._waiting + size > BLOCK_BYTES and self._events:
            self.flush()
            if self.full:
                return
        if COUNT.size + size > blocks.MAX_PLAIN_BYTES:
            raise TraceWriteError(
                f"{self.partial}: a pass of {size} bytes of routes does not fit into a block of "
                f"{blocks.MAX_PLAIN_BYTES}: use a smaller prefill chunk",
                path=self.partial,
            )
        if not self._events:
            self._since = time.monotonic()
        self._events.append(event)
        self._waiting += size
        if isinstance(event, ModelPass):
            self._passes += 1
            self._routes += len(event.ids) * event.tokens * self.header.top_k
        elif isinstance(event, AnswerBegan):
            self._answers += 1
        elif isinstance(event, AnswerEnded) and time.monotonic() - self._since > BLOCK_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits as a block of its own; where it would pass the limit it is dropped: `full`.

        Raises:
            TraceWriteError: the disk refused it.
        """
        if not self._events:
            return
        block = blocks.pack_block(blocks.EVENTS, self._blocks, encode(self._events, self.header))
        self._events, self._waiting = [], COUNT.size
        if self.max_bytes is not None and self.nbytes + len(block) + ENDING_BYTES > self.max_bytes:
            self.full = True
            self._answers, self._passes, self._routes = self._counted
            return
        self._write(block)
        self._counted = self._answers, self._passes, self._routes

    def finish(self, ended: Ending = "finished") -> None:
        """Write what waits and the last block, make it durable, and give the trace its name.

        Raises:
            TraceWriteError: the disk refused; `partial` holds what was written before.
        """
        if not self.full:
            self.flush()
        answers, passes, routes = self._counted
        ending = TraceEnding(
            ended="limit" if self.full else ended, answers=answers, passes=passes, routes=routes
        )
        self._write(blocks.pack_block(blocks.ENDING, self._blocks, msgspec.json.encode(ending)))
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            os.rename(self.partial, self.path)
            self.finished = True
            fsync_directory(os.path.dirname(os.path.abspath(self.path)))
        except OSError as error:
            raise self._failed(error) from error

    def discard(self) -> None:
        """Delete what was written: there is nothing in it that anybody wants."""
        self._file.close()
        os.unlink(self.partial)

    def abandon(self) -> None:
        """Close the file as it is; `partial` stays and is readable."""
        self._file.close()

    def _write(self, block: bytes) -> None:
        view = memoryview(block)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise self._failed(error) from error
        self.nbytes += len(block)
        self._blocks += 1

    def _failed(self, error: OSError) -> TraceWriteError:
        return TraceWriteError(
            f"{self.partial}: the trace cannot be written ({error.strerror or error})", path=self.partial
        )
