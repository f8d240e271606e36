"""Owns the compiled grammars that are kept: the latest used ones, bounded in number and in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict

from mach_server.grammar.backend import CompiledGrammar
from mach_server.grammar.shapes import Shape


class GrammarCache:
    """Compiled grammars by their shapes; from any thread.

    Attributes:
        hits: look-ups that found something.
        misses: those that did not.
    """

    def __init__(self, *, entries: int, size_bytes: int) -> None:
        """Args: entries: kept at most. size_bytes: of all of them, at most."""
        self._entries, self._limit = entries, size_bytes
        self._kept: OrderedDict[Shape, CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()
        self._bytes = 0
        self.hits = self.misses = 0

    def find(self, shape: Shape) -> CompiledGrammar | None:
        """The grammar of `shape`, if it is kept."""
        with self._lock:
            found = self._kept.get(shape)
            if found is None:
                self.misses += 1
            else:
                self.hits += 1
                self._kept.move_to_end(shape)
            return found

    def keep(self, shape: Shape, grammar: CompiledGrammar) -> None:
        """Keep `grammar` as the latest used; the longest unused ones leave."""
        with self._lock:
            replaced = self._kept.pop(shape, None)
            self._bytes += grammar.size_bytes - (replaced.size_bytes if replaced else 0)
            self._kept[shape] = grammar
            while self._kept and (len(self._kept) > self._entries or self._bytes > self._limit):
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= oldest.size_bytes

    def check(self) -> None:
        """Assert that the books are right."""
        with self._lock:
            assert self._bytes == sum(grammar.size_bytes for grammar in self._kept.values())
            assert len(self._kept) <= self._entries and self._bytes <= self._limit

    def stats(self) -> dict[str, int]:
        """Figures for reports."""
        with self._lock:
            return {
                "entries": len(self._kept),
                "bytes": self._bytes,
                "hits": self.hits,
                "misses": self.misses,
            }
