"""The cache is bounded in entries and bytes, and forgets what was not used for longest."""

from dataclasses import dataclass

from mach_server.grammar.backend import Matcher
from mach_server.grammar.grammar_cache import GrammarCache
from mach_server.grammar.shapes import Text


@dataclass
class Sized:
    size_bytes: int

    def matcher(self) -> Matcher:
        raise NotImplementedError


def test_the_longest_unused_leaves_first() -> None:
    cache = GrammarCache(entries=2, size_bytes=100)
    for name in "ab":
        cache.keep(Text(name), Sized(10))
        cache.check()
    assert cache.find(Text("a")) is not None
    cache.keep(Text("c"), Sized(10))
    cache.check()
    assert cache.find(Text("b")) is None
    assert cache.stats() == {"entries": 2, "bytes": 20, "hits": 1, "misses": 1}


def test_bytes_are_bounded_too() -> None:
    cache = GrammarCache(entries=10, size_bytes=100)
    for name in "abc":
        cache.keep(Text(name), Sized(40))
        cache.check()
    assert cache.stats()["entries"] == 2
    cache.keep(Text("big"), Sized(101))
    cache.check()
    assert cache.stats()["entries"] == 0


def test_a_grammar_that_is_kept_twice_counts_once() -> None:
    cache = GrammarCache(entries=10, size_bytes=100)
    for size in (40, 30):
        cache.keep(Text("a"), Sized(size))
        cache.check()
    assert cache.stats()["bytes"] == 30
