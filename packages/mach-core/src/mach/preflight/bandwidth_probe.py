"""Owns the short, bounded measurement of this machine's disk and memory.

The disk is read as the engine reads it: records at random places, four threads, past the page cache where the
system allows. A large file of the checkpoint serves if there is one, else a temporary file is written.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mach.errors import CommandError
from mach.preflight.bandwidth import Bandwidth

PROBE_SECONDS = 1.5
PROBE_BYTES = 1 << 30
TEMPORARY_BYTES = 256 << 20
LEAST_FILE = 64 << 20
THREADS = 4
BLOCK_ALIGNMENT = 1 << 14
MEMORY_BYTES = 64 << 20


def measure_bandwidth(directory: str, block: int, cache_root: str) -> Bandwidth:
    """Measure the disk that holds `directory` and the memory; about two seconds.

    Raises:
        CommandError: no file can be read, and none can be written in `cache_root`.
    """
    block = max(BLOCK_ALIGNMENT, -(-block // BLOCK_ALIGNMENT) * BLOCK_ALIGNMENT)
    try:
        with _probe_file(directory, cache_root) as path:
            disk, direct = _read_rate(path, block)
    except OSError as error:
        raise CommandError(f"--measure-disk: {error.filename or cache_root}: {error.strerror}") from error
    return Bandwidth(disk, _copy_rate(), block, direct, time.strftime("%Y-%m-%d"))


@contextmanager
def _probe_file(directory: str, cache_root: str) -> Iterator[str]:
    """A large file on the disk in question: the checkpoint's largest, or one made for the purpose."""
    largest = max(_files(directory), default=(0, ""))
    if largest[0] >= LEAST_FILE:
        yield largest[1]
        return
    os.makedirs(cache_root, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=cache_root, prefix="probe-") as handle:
        chunk = os.urandom(1 << 20)
        for _ in range(TEMPORARY_BYTES // len(chunk)):
            handle.write(chunk)
        handle.flush()
        os.fsync(handle.fileno())
        yield handle.name


def _files(directory: str) -> Iterator[tuple[int, str]]:
    for folder in (directory, os.path.join(directory, "expert_sidecar")):
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            path = os.path.join(folder, name)
            # A file with holes would be read at the speed of memory.
            if name.endswith((".safetensors", ".bin")) and os.path.isfile(path):
                status = os.stat(path)
                if status.st_blocks * 512 >= status.st_size:
                    yield status.st_size, path


def _read_rate(path: str, block: int) -> tuple[float, bool]:
    fd, direct = _open_uncached(path)
    try:
        size = os.fstat(fd).st_size
        block = min(block, size // BLOCK_ALIGNMENT * BLOCK_ALIGNMENT)
        total, end = 0, time.perf_counter() + PROBE_SECONDS
        lock = threading.Lock()

        def read(seed: int) -> None:
            nonlocal total
            places = random.Random(seed)
            buffer = mmap.mmap(-1, block)  # page-aligned, as direct reads demand
            while True:  # once at least, however late a busy machine lets this thread begin
                offset = places.randrange(0, (size - block) // BLOCK_ALIGNMENT + 1) * BLOCK_ALIGNMENT
                count = os.preadv(fd, [buffer], offset)
                with lock:
                    total += count
                if time.perf_counter() >= end or total >= PROBE_BYTES:
                    return

        begin = time.perf_counter()
        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed = time.perf_counter() - begin
    finally:
        os.close(fd)
    if total == 0:
        raise CommandError(f"--measure-disk: {path}: nothing could be read")
    return total / elapsed, direct


def _open_uncached(path: str) -> tuple[int, bool]:
    if sys.platform == "linux":
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
            os.preadv(fd, [mmap.mmap(-1, BLOCK_ALIGNMENT)], 0)
            return fd, True
        except OSError:  # a file system without direct reads
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            return fd, False
    fd = os.open(path, os.O_RDONLY)
    if sys.platform == "darwin":
        import fcntl  # noqa: PLC0415 - not on every platform

        fcntl.fcntl(fd, fcntl.F_NOCACHE, 1)
        return fd, True
    return fd, False


def _copy_rate() -> float:
    source, target = bytearray(MEMORY_BYTES), memoryview(bytearray(MEMORY_BYTES))
    best = 0.0
    for _ in range(4):
        begin = time.perf_counter()
        target[:] = source
        best = max(best, 2 * MEMORY_BYTES / (time.perf_counter() - begin))
    return best
