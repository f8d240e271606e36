"""Backends over a vocabulary of single bytes, and ways to ask them about whole texts."""

from collections.abc import Callable

import pytest

from mach_server.grammar.backend import CompiledGrammar, GrammarBackend, Mask, new_mask
from mach_server.grammar.llguidance_backend import LlguidanceBackend
from mach_server.grammar.vocabulary import Vocabulary
from mach_server.grammar.xgrammar_backend import XgrammarBackend

Matches = Callable[[CompiledGrammar, str], bool]
END = 256
SECOND_END = 260
BYTES = Vocabulary(
    tokens=(*(bytes([byte]) for byte in range(256)), b"", b"<think>", b'{"', b"</think>\n\n", b"", b""),
    end_tokens=(END, SECOND_END),
    encode=lambda text: list(text.encode()),
)


def allowed(mask: Mask) -> list[int]:
    return [token for token in range(len(mask) * 32) if mask[token // 32] >> (token % 32) & 1]


def matches(grammar: CompiledGrammar, text: str) -> bool:
    """Whether a whole answer may be `text`; masks are compared with what is accepted on the way."""
    matcher, mask = grammar.matcher(), new_mask(BYTES.size)
    for byte in text.encode():
        matcher.fill(mask)
        accepted = matcher.accept(byte)
        assert accepted == (byte in allowed(mask))
        if not accepted:
            return False
    matcher.fill(mask)
    may_end = END in allowed(mask)
    assert may_end == (SECOND_END in allowed(mask))
    assert matcher.accept(END) == may_end == matcher.is_terminated()
    return may_end


@pytest.fixture(scope="session")
def xgrammar_backend() -> XgrammarBackend:
    return XgrammarBackend(BYTES)


@pytest.fixture(scope="session")
def llguidance_backend() -> LlguidanceBackend:
    return LlguidanceBackend(BYTES)


@pytest.fixture(scope="session", params=["xgrammar", "llguidance"])
def backend(request: pytest.FixtureRequest) -> GrammarBackend:
    found: GrammarBackend = request.getfixturevalue(f"{request.param}_backend")
    return found


@pytest.fixture(scope="session", name="matches")
def matches_fixture() -> Matches:
    return matches


@pytest.fixture(scope="session")
def byte_vocabulary() -> Vocabulary:
    return BYTES
