"""Owns the counting of a run's bytes, for whoever draws a bar; it knows no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

Buffer = bytes | memoryview


class Progress(NamedTuple):
    """How far a run is: MoE layers whole, of all; bytes written, of all (taken-up ones count as written)."""

    layers: int
    all_layers: int
    nbytes: int
    all_bytes: int


Listener = Callable[[Progress], None]


class ByteCounter:
    """Counts what goes through the iterators that it wraps, and tells a listener."""

    def __init__(self, all_layers: int, all_bytes: int, listener: Listener | None) -> None:
        """Count from nothing; without a listener nobody is told."""
        self._state = Progress(0, all_layers, 0, all_bytes)
        self._listener = listener

    def add(self, nbytes: int, layers: int = 0) -> None:
        """Note bytes, and layers that are whole now."""
        state = self._state
        self._state = state._replace(layers=state.layers + layers, nbytes=state.nbytes + nbytes)
        if self._listener is not None:
            self._listener(self._state)

    def records(self, records: Iterable[Sequence[Buffer]]) -> Iterator[Sequence[Buffer]]:
        """The same records, counted as they are taken."""
        for record in records:
            yield record
            self.add(sum(memoryview(segment).nbytes for segment in record))

    def chunks(self, chunks: Iterable[Buffer]) -> Iterator[Buffer]:
        """The same chunks, counted as they are taken."""
        for chunk in chunks:
            yield chunk
            self.add(len(chunk))
