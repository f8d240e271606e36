"""Owns constrained decoding through xgrammar: shapes as its structural tags, and its native matcher."""

from __future__ import annotations

import json
from typing import Any

from mach_server.grammar.backend import MAX_SPACE, CompiledGrammar, Mask, Matcher
from mach_server.grammar.errors import GrammarRefusedError
from mach_server.grammar.shapes import (
    Json,
    OneOf,
    Regex,
    Repeated,
    Sequence,
    Shape,
    Text,
    Triggered,
    Until,
)
from mach_server.grammar.vocabulary import Vocabulary
from mach_server.grammar.xgrammar_library import load_xgrammar


class XgrammarBackend:
    """See `GrammarBackend`."""

    name = "xgrammar"

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Take over a vocabulary: about 90 ms for 150,000 tokens.

        Raises:
            ImportError: the library is not there in the version that is needed.
        """
        self._library = load_xgrammar()
        info = self._library.tokenizer_info
        tokens = info.TokenizerInfo(
            list(vocabulary.tokens),
            info.VocabType.RAW,
            vocab_size=vocabulary.size,
            stop_token_ids=list(vocabulary.end_tokens),
        )
        # Its own cache has no bound in entries, and ours holds what is worth keeping.
        self._compiler = self._library.compiler.GrammarCompiler(tokens, max_threads=1, cache_enabled=False)

    def compile(self, shape: Shape, *, param: str) -> CompiledGrammar:
        """See `GrammarBackend`."""
        tag = json.dumps({"type": "structural_tag", "format": _format(shape)})
        try:
            compiled = self._compiler.compile_structural_tag(tag)
        except (RuntimeError, ValueError) as error:
            raise GrammarRefusedError(
                f"the form cannot be enforced: {_first_line(error)}", param=param
            ) from error
        return _Compiled(self._library.core, compiled)


class _Compiled:
    def __init__(self, core: Any, compiled: Any) -> None:
        self._core, self._compiled = core, compiled
        self.size_bytes: int = compiled.memory_size_bytes

    def matcher(self) -> Matcher:
        return _Matcher(self._core.GrammarMatcher(self._compiled._handle, None, False, -1, None))


class _Matcher:
    def __init__(self, native: Any) -> None:
        self._native = native

    def fill(self, mask: Mask) -> None:
        assert not self.is_terminated(), "no token comes after the end"
        self._native.fill_next_token_bitmask(mask.reshape(1, -1), 0, False)

    def accept(self, token: int) -> bool:
        return bool(self._native.accept_token(token, False))

    def rollback(self, tokens: int) -> None:
        self._native.rollback(tokens)

    def is_terminated(self) -> bool:
        return bool(self._native.is_terminated())


def _format(shape: Shape) -> dict[str, Any]:
    """A shape as a structural tag's format."""
    match shape:
        case Text(text):
            return {"type": "const_string", "value": text}
        case Json(schema):
            return {"type": "json_schema", "json_schema": json.loads(schema), "max_whitespace_cnt": MAX_SPACE}
        case Regex(pattern):
            return {"type": "regex", "pattern": pattern}
        case Until(marker):
            return {"type": "tag", "begin": "", "content": {"type": "any_text"}, "end": marker}
        case Sequence(parts):
            return {"type": "sequence", "elements": [_format(part) for part in parts]}
        case OneOf(options):
            return {"type": "or", "elements": [_format(option) for option in options]}
        case Repeated(part, least, most):
            return {
                "type": "repeat",
                "min": least,
                "max": -1 if most is None else most,
                "content": _format(part),
            }
        case Triggered(trigger, then, again):
            return {"type": "dispatch", "rules": [[trigger, _format(then)]], "loop": again}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
