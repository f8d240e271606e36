"""Record files, and the plain-Python twin of the reader that everything is compared with."""

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

SIZES = (4096, 520, 36, 8192, 2, 100)


class RecordFile:
    """`count` records of random bytes, each of `sizes`, `stride` bytes apart from `start` on."""

    def __init__(self, path: Path, count: int, sizes: Sequence[int], start: int, stride: int) -> None:
        self.path = path
        self.sizes = list(sizes)
        self.record_bytes = sum(sizes)
        self.offsets = [start + i * stride for i in range(count)]
        path.write_bytes(np.random.default_rng(count + start).bytes(self.offsets[-1] + self.record_bytes))
        self.fd = os.open(path, os.O_RDONLY)
        self.records = [self.record(i) for i in range(count)]
        self.crcs = [zlib.crc32(record) for record in self.records]

    def record(self, number: int) -> bytes:
        return os.pread(self.fd, self.record_bytes, self.offsets[number])

    def segment_offsets(self, number: int) -> list[int]:
        """Where each segment of a record begins in the file."""
        return [self.offsets[number] + sum(self.sizes[:s]) for s in range(len(self.sizes))]

    def open_direct(self) -> int:
        """Another descriptor, past the page cache; the test skips where the file system has no such thing."""
        if not hasattr(os, "O_DIRECT"):
            pytest.skip("this system has no O_DIRECT")
        try:
            return os.open(self.path, os.O_RDONLY | os.O_DIRECT)
        except OSError as error:
            pytest.skip(f"the file system under the test folder refuses O_DIRECT: {error}")


@pytest.fixture
def on_the_cpu() -> Iterator[None]:
    """MLX's CPU device is the default one."""
    device = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(device)


@pytest.fixture
def record_file(tmp_path: Path):
    """A function that makes RecordFiles."""
    made: list[RecordFile] = []

    def make(
        count: int = 8, sizes: Sequence[int] = SIZES, start: int = 4096, stride: int | None = None
    ) -> RecordFile:
        made.append(
            RecordFile(tmp_path / f"records{len(made)}.bin", count, sizes, start, stride or sum(sizes) + 77)
        )
        return made[-1]

    yield make
    for file in made:
        os.close(file.fd)


def _read_plainly(record: bytes, sizes: Sequence[int], widen: Sequence[bool] | None = None) -> list[bytes]:
    slots, at = [], 0
    for size, wide in zip(sizes, widen or [False] * len(sizes), strict=True):
        segment = record[at : at + size]
        at += size
        slots.append((np.frombuffer(segment, "<u2").astype("<u4") << 16).tobytes() if wide else segment)
    return slots


@pytest.fixture
def read_plainly() -> Callable[..., list[bytes]]:
    """The twin: what one record makes of the slots, in plain Python."""
    return _read_plainly
