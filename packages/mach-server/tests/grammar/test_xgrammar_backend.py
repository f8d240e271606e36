"""What is used of xgrammar's insides is there, and torch is not."""

import subprocess
import sys

import pytest

from mach_server.grammar import xgrammar_library
from mach_server.grammar.backend import new_mask
from mach_server.grammar.errors import GrammarRefusedError
from mach_server.grammar.shapes import Json, Text
from mach_server.grammar.vocabulary import Vocabulary
from mach_server.grammar.xgrammar_backend import XgrammarBackend


def test_it_is_imported_without_torch() -> None:
    code = (
        "import sys; from mach_server.grammar.xgrammar_library import load_xgrammar; first = load_xgrammar();"
        "assert load_xgrammar() == first; assert 'torch' not in sys.modules; print('well')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout == "well\n"


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xgrammar_library, "xgrammar_version", lambda: "9.9.9")
    with pytest.raises(ImportError, match=r"0\.2\.8.*9\.9\.9"):
        xgrammar_library.load_xgrammar()


def test_the_native_matcher_does_what_is_relied_on(
    xgrammar_backend: XgrammarBackend, byte_vocabulary: Vocabulary
) -> None:
    matcher = xgrammar_backend.compile(Text("ab"), param="").matcher()
    mask = new_mask(byte_vocabulary.size)
    matcher.fill(mask)
    assert [t for t in range(len(mask) * 32) if mask[t // 32] >> (t % 32) & 1] == [ord("a")]
    assert matcher.accept(ord("a"))
    assert not matcher.accept(ord("x"))
    assert not matcher.accept(byte_vocabulary.end_tokens[0])
    assert matcher.accept(ord("b")) and not matcher.is_terminated()
    assert matcher.accept(byte_vocabulary.end_tokens[1]) and matcher.is_terminated()
    assert not matcher.accept(ord("b"))
    with pytest.raises(AssertionError):
        matcher.fill(mask)
    matcher.rollback(2)
    assert not matcher.is_terminated()
    assert matcher.accept(ord("b"))


def test_what_it_cannot_compile_is_refused(xgrammar_backend: XgrammarBackend) -> None:
    with pytest.raises(GrammarRefusedError) as refused:
        xgrammar_backend.compile(Json('{"type": "nonsense"}'), param="response_format")
    assert refused.value.param == "response_format"
