"""Owns reading records with nothing around it: the speed of disk or page cache, to compare with."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Sequence

_HUGE_PAGE = 2 << 20


def read_plain(
    where: Sequence[tuple[int, int]], record_bytes: int, threads: int, *, huge: bool = True
) -> None:
    """Read records into one aligned buffer per thread, and do nothing with them.

    Args:
        where: (descriptor, offset) of each record, in the order of reading.
        record_bytes: of one record; for a descriptor with O_DIRECT a multiple of its block.
        threads: how many read at once.
        huge: buffers in huge pages, which is as fast as a disk goes.

    Raises:
        OSError: a record is short.
    """
    left = iter(where)
    lock = threading.Lock()
    failed: list[OSError] = []

    def work() -> None:
        # A huge page needs 2 MiB that begin at a multiple of 2 MiB: there is one in so much more room.
        with mmap.mmap(
            -1, record_bytes + 2 * _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        ) as memory:
            if huge:
                memory.madvise(mmap.MADV_HUGEPAGE)
            first = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % _HUGE_PAGE
            buffer = memoryview(memory)[first : first + record_bytes]
            try:
                while not failed:
                    with lock:
                        place = next(left, None)
                    if place is None:
                        break
                    if os.preadv(place[0], [buffer], place[1]) != record_bytes:
                        raise OSError(f"the record at {place[1]} is short")
            except OSError as error:
                failed.append(error)
            finally:
                buffer.release()

    others = [threading.Thread(target=work) for _ in range(threads - 1)]
    for thread in others:
        thread.start()
    work()
    for thread in others:
        thread.join()
    if failed:
        raise failed[0]
