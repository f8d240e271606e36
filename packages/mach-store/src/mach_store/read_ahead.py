"""Owns the thread that reads the next experts while MLX computes with the present ones, and whether it pays.

The thread reads and does nothing else: MLX's streams belong to the caller's thread, and so do the tables of
the bank and the counters. It knows no slots but those that it is told to fill; that no unfinished graph
refers to them is the caller's promise.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

from mach_store.counters import LayerCounters

Read = Callable[[LayerCounters], None]
"""Reads one batch, and counts its bytes and seconds."""

THREAD_NAME = "mach-read-ahead"


class Reading:
    """One batch on its way from the disk."""

    def __init__(self, future: Future[LayerCounters]) -> None:
        """Of a read that the thread has been given."""
        self._future = future

    def finish(self, counters: LayerCounters) -> None:
        """Wait for the batch, and add to `counters` what it cost: the read, and the waiting for it here.

        Raises:
            SidecarCorruptionError, ExpertReadError: the read failed; its slots may hold anything.
        """
        began = time.perf_counter()
        try:
            read = self._future.result()
            counters.bytes_read += read.bytes_read
            counters.read_seconds += read.read_seconds
        finally:
            counters.wait_seconds += time.perf_counter() - began

    def drop(self) -> None:
        """Wait until nothing is written any more; nobody will use the batch, nor hear of its failure."""
        wait((self._future,))


class DeferredReading(Reading):
    """A batch that is read when it is needed, by the caller itself."""

    def __init__(self, read: Read) -> None:
        """Of a read that nothing is to be computed beside, or that must not leave the caller's thread."""
        self._read = read

    def finish(self, counters: LayerCounters) -> None:
        """See `Reading`."""
        self._read(counters)

    def drop(self) -> None:
        """See `Reading`; nothing was begun."""


class ReadAhead:
    """One thread, made for the first batch read ahead and ended by `close`; it has one batch at a time.

    Attributes:
        from_disk: whether the last batch came from the disk, and not all of it from the system's page cache;
            also where that is not known.
    """

    def __init__(self) -> None:
        """No thread yet."""
        self._threads: ThreadPoolExecutor | None = None
        self.from_disk = True

    def begin(self, read: Read, *, ahead: bool = True) -> Reading:
        """Have a batch read; the caller finishes or drops it before it begins another.

        Args:
            read: the batch.
            ahead: the thread reads it from now on; otherwise the caller does, when it finishes it.
        """
        watched = partial(self._watched, read)
        if not ahead:
            return DeferredReading(watched)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, thread_name_prefix=THREAD_NAME)
        return Reading(self._threads.submit(_counted, watched))

    def _watched(self, read: Read, counters: LayerCounters) -> None:
        before = _blocks_read()
        read(counters)
        self.from_disk = before is None or _blocks_read() != before

    def close(self) -> None:
        """End the thread, after the batch that it may be reading."""
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None


def _counted(read: Read) -> LayerCounters:
    counters = LayerCounters()
    read(counters)
    return counters


def _blocks_read() -> int | None:
    """What the disk has had to give to this process so far; None where the system does not count it."""
    if sys.platform != "linux":
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_inblock
