"""Owns the bounds on grammars: what a request may ask for, and what the server spends on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarLimits:
    """Bounds of one server.

    Attributes:
        schema_bytes: of a JSON schema as text.
        schema_depth: of nested objects and lists in it.
        pattern_length: characters of a regular expression.
        choices: options of one choice.
        tools: functions of one request.
        compile_seconds: that a client waits for a grammar.
        workers: threads that compile.
        waiting: grammars that are compiled or wait for it; the next is refused.
        cache_entries: compiled grammars that are kept.
        cache_bytes: bytes that they may take, as the backends report or estimate them.
    """

    schema_bytes: int = 256 << 10
    schema_depth: int = 48
    pattern_length: int = 4096
    choices: int = 1024
    tools: int = 256
    compile_seconds: float = 20.0
    workers: int = 2
    waiting: int = 32
    cache_entries: int = 128
    cache_bytes: int = 256 << 20
