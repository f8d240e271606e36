"""Owns constrained decoding through llguidance: shapes as its Lark grammars, and its matcher."""

from __future__ import annotations

import json

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from mach_server.grammar.backend import MAX_SPACE, CompiledGrammar, Mask, Matcher
from mach_server.grammar.errors import GrammarDeadEndError, GrammarRefusedError
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

_BYTES_PER_CHARACTER = 300
"""Memory of a compiled grammar per character of its text: 100 to 250 were measured."""
_LEAST_BYTES = 64 << 10
_ANY_TEXT = r"/(.|\n)*/"


class LlguidanceBackend:
    """See `GrammarBackend`."""

    name = "llguidance"

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Take over a vocabulary: about 0.7 s for 150,000 tokens."""
        self._end_tokens = frozenset(vocabulary.end_tokens)
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(_Tokens(vocabulary)), eos_token=list(vocabulary.end_tokens)
        )
        # Its messages would repeat the client's schema into the log.
        self._limits = LLParserLimits(verbose_errors=False)

    def compile(self, shape: Shape, *, param: str) -> CompiledGrammar:
        """See `GrammarBackend`."""
        grammar = LLMatcher.grammar_from_lark(_Lark().grammar(shape))
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise GrammarRefusedError(
                f"the form cannot be enforced: {' '.join(matcher.get_error().split())[:300]}", param=param
            )
        return _Compiled(matcher, self._end_tokens, len(grammar))


class _Tokens:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.end_tokens[0]
        # Without bytes a token would match anywhere, so those get a name, and are declared special.
        self.tokens = [token or b"<control %d>" % i for i, token in enumerate(vocabulary.tokens)]
        self.special_token_ids = [i for i, token in enumerate(vocabulary.tokens) if not token]

        self._encode, self._bytes = vocabulary.encode, vocabulary.tokens
        self._ids = {token: i for i, token in reversed(list(enumerate(vocabulary.tokens))) if token}
        self._longest = max(map(len, vocabulary.tokens))

    def __call__(self, text: bytes) -> list[int]:
        """Tokens of text that a grammar forces: llguidance allows just these, as the model would write it.

        They must join up to the text, which a tokenizer that normalises does not promise.
        """
        try:
            tokens = self._encode(text.decode())
        except UnicodeDecodeError:
            return self._greedy(text)
        fits = all(0 <= token < len(self._bytes) for token in tokens)
        return tokens if fits and b"".join(self._bytes[t] for t in tokens) == text else self._greedy(text)

    def _greedy(self, text: bytes) -> list[int]:
        """The longest token at each place."""
        tokens, at = [], 0
        while at < len(text):
            sizes = range(min(self._longest, len(text) - at), 0, -1)
            size = next((size for size in sizes if text[at : at + size] in self._ids), 0)
            if not size:
                break
            tokens.append(self._ids[text[at : at + size]])
            at += size
        return tokens


class _Compiled:
    def __init__(self, pristine: LLMatcher, end_tokens: frozenset[int], characters: int) -> None:
        self._pristine, self._end_tokens = pristine, end_tokens
        self.size_bytes = _LEAST_BYTES + _BYTES_PER_CHARACTER * characters

    def matcher(self) -> Matcher:
        return _Matcher(self._pristine.deep_copy(), self._end_tokens)


class _Matcher:
    """llguidance's idea of its end varies with the grammar: the end token is kept track of here."""

    def __init__(self, native: LLMatcher, end_tokens: frozenset[int]) -> None:
        self._native, self._end_tokens = native, end_tokens
        self._terminated = False

    def fill(self, mask: Mask) -> None:
        assert not self._terminated, "no token comes after the end"
        mask[:] = np.frombuffer(self._native.compute_bitmask(), dtype=np.int32)[: mask.size]
        self._check()

    def accept(self, token: int) -> bool:
        if self._terminated:
            return False
        if token in self._end_tokens:
            self._terminated = self._native.is_accepting()
            return self._terminated
        # Unlike `consume_token`, this leaves the matcher usable where the token is refused.
        accepted = self._native.try_consume_tokens([token]) == 1
        self._check()
        return accepted

    def _check(self) -> None:
        if self._native.is_error():
            raise GrammarDeadEndError(f"the grammar became too complex: {self._native.get_error()[:300]}")

    def rollback(self, tokens: int) -> None:
        if tokens and self._terminated:
            self._terminated = False
            tokens -= 1
        if tokens:
            self._native.rollback(tokens)

    def is_terminated(self) -> bool:
        return self._terminated


class _Lark:
    """Writes a shape as a Lark grammar. Equal parts become one rule."""

    def __init__(self) -> None:
        self._rules: list[str] = []
        self._known: dict[Shape, str] = {}

    def grammar(self, shape: Shape) -> str:
        start = self._expression(shape)
        return "\n".join(["%llguidance {}", f"start: {start}", *self._rules, f"ANY_TEXT: {_ANY_TEXT}", ""])

    def _rule(self, shape: Shape, body: str, *, attributes: str = "") -> str:
        name = f"r{len(self._known)}"
        self._known[shape] = name
        self._rules.append(f"{name}{attributes}: {body}")
        return name

    def _expression(self, shape: Shape) -> str:
        if shape in self._known:
            return self._known[shape]
        match shape:
            case Text(text):
                return json.dumps(text, ensure_ascii=False) if text else '""'
            case Json(schema):
                options = {"x-guidance": {"whitespace_pattern": f"[ \\t\\n\\r]{{0,{MAX_SPACE}}}"}}
                return self._rule(shape, f"%json {json.dumps({**json.loads(schema), **options})}")
            case Regex(pattern):
                return self._rule(shape, f"/{_slashed(pattern)}/")
            case Until(marker):
                return self._rule(
                    shape, f"ANY_TEXT {json.dumps(marker, ensure_ascii=False)}", attributes="[lazy]"
                )
            case Sequence(parts):
                return self._rule(shape, " ".join(map(self._expression, parts)))
            case OneOf(options):
                return self._rule(shape, " | ".join(map(self._expression, options)))
            case Repeated(part, least, most):
                return self._rule(
                    shape, f"{self._expression(part)}{{{least},{'' if most is None else most}}}"
                )
            case Triggered(trigger, then, again):
                begin = self._expression(Until(trigger))
                call = f"({begin} {self._expression(then)})"
                return self._rule(shape, f"{call}* ANY_TEXT" if again else f"{call} | ANY_TEXT")


def _slashed(pattern: str) -> str:
    """The pattern between slashes: those in it are escaped, unless they are already."""
    result, escaped = [], False
    for character in pattern:
        result.append("\\/" if character == "/" and not escaped else character)
        escaped = character == "\\" and not escaped
    return "".join(result).replace("\n", "\\n")
