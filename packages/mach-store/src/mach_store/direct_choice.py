"""Owns the choice between direct reads of experts and buffered ones, from facts and a short measurement.

A bank and the page cache compete for the same memory. Where the page cache can hold every expert beside the
bank it is a second cache for nothing. Where it cannot, what it holds is mostly what the bank holds too, and
the only question is which way of reading is the faster: direct unless buffered reads are clearly faster.
"""

from __future__ import annotations

import errno
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from typing import NamedTuple

from mach_store.bank_form import BankForm
from mach_store.counters import LayerCounters
from mach_store.errors import ExpertReadError
from mach_store.expert_source import ExpertSource
from mach_store.scatter_reader import ScatterReader
from mach_store.sidecar.sidecar_source import SidecarSource

PAGE_CACHE_SHARE = 0.8
"""Of what is left of the memory, so much may be counted on for the page cache."""
SAMPLE_SECONDS = 0.15
"""Time for each way of reading, at least one batch each."""
SAMPLE_RECORDS = 64
"""Records read in each way at most."""
BATCH = 8
TIE = 0.95
"""Direct reads win at so much of the buffered ones' rate: they leave the page cache to others."""


class DirectChoice(NamedTuple):
    """How experts are read, and why.

    Attributes:
        direct: past the page cache (O_DIRECT, F_NOCACHE).
        asked: `auto`, or the value of `LME_DIRECT_IO`.
        code: the reason as one word, for start-up lines.
        reason: the reason as a sentence.
        direct_rate: bytes per second that direct reads were measured at; None where nothing was.
        buffered_rate: the same for buffered reads of what the page cache did not hold.
    """

    direct: bool
    asked: str
    code: str
    reason: str
    direct_rate: float | None = None
    buffered_rate: float | None = None

    @property
    def way(self) -> str:
        """`directly` or `through the page cache`."""
        return "directly" if self.direct else "through the page cache"

    def as_dict(self) -> dict[str, object]:
        """For reports."""
        return {
            "direct_io": self.direct,
            "asked": self.asked,
            "reason": self.reason,
            "measured_direct_bytes_per_second": self.direct_rate,
            "measured_buffered_bytes_per_second": self.buffered_rate,
        }


NOTHING_STREAMED = DirectChoice(False, "auto", "nothing-streamed", "nothing is read while serving")


def asked_choice(direct: bool) -> DirectChoice:
    """The choice of `LME_DIRECT_IO=0` or `1`."""
    value = str(int(direct))
    return DirectChoice(direct, value, "asked", f"LME_DIRECT_IO={value}")


def choose_direct(
    source: ExpertSource, reader: ScatterReader, form: BankForm, *, bank_bytes: int, left_bytes: int
) -> DirectChoice:
    """Choose for a bank that is about to be made.

    Args:
        source: the experts, opened for buffered reads.
        reader: how they are read.
        form: how they lie in memory.
        bank_bytes: the bank's budget.
        left_bytes: memory that nothing of the engine will take.
    """
    if not isinstance(source, SidecarSource):
        return _buffered("slices", "slices of tensors are not aligned as direct reads need it")
    if not reader.native:
        return _buffered("python-reader", "the Python reader cannot read past the page cache")
    everything = source.num_experts * sum(form.slot_bytes(schema) for schema in source.schemas.values())
    if bank_bytes >= everything:
        return _buffered("whole-bank", "every expert is in the bank: nothing is read while serving")
    on_disk = source.layout.record_bytes_total
    if on_disk <= PAGE_CACHE_SHARE * left_bytes:
        return _buffered(
            "page-cache-holds-all",
            f"the page cache can hold all experts ({on_disk / 1e9:.2f} GB) in the {left_bytes / 1e9:.2f} GB "
            "that the engine leaves",
        )
    too_big = (
        f"the experts ({on_disk / 1e9:.2f} GB) do not fit into the {max(0, left_bytes) / 1e9:.2f} GB that "
        "the engine leaves"
    )
    if sys.platform != "linux":
        return DirectChoice(
            True, "auto", "not-measured", f"{too_big}, and nothing is measured on {sys.platform}"
        )
    try:
        direct, buffered = _measure(source, reader, form)
    except OSError as error:
        return _buffered("no-direct-reads", f"this file system has no direct reads ({error.strerror})")
    return judged(direct, buffered, too_big)


def judged(direct: float, buffered: float, because: str) -> DirectChoice:
    """The choice between two measured rates in bytes per second. Args: because: why it was measured."""
    wins = direct >= TIE * buffered
    verdict = "direct reads are as fast or faster" if wins else "buffered reads are faster"
    reason = (
        f"{because}, and as measured {verdict}: {direct / 1e9:.2f} GB/s direct, {buffered / 1e9:.2f} GB/s "
        "buffered"
    )
    return DirectChoice(wins, "auto", "measured", reason, direct, buffered)


def _buffered(code: str, reason: str) -> DirectChoice:
    return DirectChoice(False, "auto", code, reason)


def _measure(source: SidecarSource, reader: ScatterReader, form: BankForm) -> tuple[float, float]:
    """Bytes per second of direct and of buffered reads, on random records, each read once.

    Raises:
        OSError: this file system has no direct reads.
    """
    layer, schema = max(source.schemas.items(), key=lambda item: item[1].nbytes)
    batch = min(BATCH, max(1, source.num_experts // 2))
    arrays = form.scratch(schema, batch)
    with closing(source.direct_twin()) as past_cache:
        layers = [index for index, other in source.schemas.items() if other == schema]
        batches = _batches(layers, source.num_experts, batch)

        def read(direct: bool) -> Callable[[int, list[int]], int]:
            experts_of = past_cache if direct else source
            own = reader.with_direct(direct)

            def one(layer: int, experts: list[int]) -> int:
                counters = LayerCounters()
                if not direct:
                    _forget(source, layer, experts)
                slots = list(range(len(experts)))
                own.read(arrays.plan, experts_of, layer, experts, slots, counters)
                return counters.bytes_read

            return one

        try:
            return _rates(read(True), read(False), batches)
        except ExpertReadError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno == errno.EINVAL:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from error
            raise


def _rates(
    direct: Callable[[int, list[int]], int],
    buffered: Callable[[int, list[int]], int],
    batches: Iterator[tuple[int, list[int]]],
) -> tuple[float, float]:
    done, seconds = [0, 0], [0.0, 0.0]
    for turn, (layer, experts) in enumerate(batches):
        way = turn % 2
        began = time.perf_counter()
        done[way] += (direct, buffered)[way](layer, experts)
        seconds[way] += time.perf_counter() - began
        if way and min(seconds) >= SAMPLE_SECONDS:
            break
    return done[0] / max(seconds[0], 1e-9), done[1] / max(seconds[1], 1e-9)


def _batches(layers: list[int], experts: int, batch: int) -> Iterator[tuple[int, list[int]]]:
    """(layer, experts) at random, an even number of batches; no record twice while there are others."""
    records = [(layer, first) for layer in layers for first in range(0, experts - batch + 1, batch)]
    random.Random(0).shuffle(records)
    most = max(2, min(len(records), 2 * SAMPLE_RECORDS // batch) // 2 * 2)
    for layer, first in islice(records * 2, most):
        yield layer, list(range(first, first + batch))


def _forget(source: SidecarSource, layer: int, experts: list[int]) -> None:
    """Drop these records from the page cache, where they may lie from an earlier run."""
    where, size = source.locate(layer, experts), source.schemas[layer].nbytes
    for fd, offset in zip(where.fds, where.offsets, strict=True):
        os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)
