"""Owns the counting of a run's bytes, for whoever draws a bar; it knows no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

Buffer = bytes | memoryview


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        layers: MoE layers that are whole.
        all_layers: of so many.
        nbytes: bytes of weights that are written.
        all_bytes: of so many.
        taken_up: those of `nbytes` that an interrupted run had written.
    """

    layers: int
    all_layers: int
    nbytes: int
    all_bytes: int
    taken_up: int


Listener = Callable[[Progress], None]


class ByteCounter:
    """Counts what goes through the iterators that it wraps, and tells a listener."""

    def __init__(self, all_layers: int, all_bytes: int, listener: Listener | None) -> None:
        """Count from nothing; without a listener nobody is told."""
        self._state = Progress(0, all_layers, 0, all_bytes, 0)
        self._listener = listener

    def add(self, nbytes: int, *, layers: int = 0, taken_up: bool = False) -> None:
        """Note bytes, and layers that are whole now."""
        state = self._state
        self._state = state._replace(
            layers=state.layers + layers,
            nbytes=state.nbytes + nbytes,
            taken_up=state.taken_up + (nbytes if taken_up else 0),
        )
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
