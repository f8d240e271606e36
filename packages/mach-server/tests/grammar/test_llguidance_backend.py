"""What is relied on in llguidance: ends, refusals that leave no trace, forced text, slashes."""

import pytest

from mach_server.grammar.backend import new_mask
from mach_server.grammar.errors import GrammarRefusedError
from mach_server.grammar.llguidance_backend import LlguidanceBackend
from mach_server.grammar.shapes import Json, Regex, Text
from mach_server.grammar.vocabulary import Vocabulary


def tokens_of(mask: object) -> list[int]:
    assert hasattr(mask, "__len__")
    return [t for t in range(len(mask) * 32) if mask[t // 32] >> (t % 32) & 1]  # type: ignore[index]


def test_a_refused_token_leaves_no_trace(
    llguidance_backend: LlguidanceBackend, byte_vocabulary: Vocabulary
) -> None:
    matcher = llguidance_backend.compile(Regex("a[bc]*"), param="").matcher()
    end = byte_vocabulary.end_tokens[1]
    assert not matcher.accept(end) and not matcher.is_terminated()
    assert not matcher.accept(ord("x"))
    assert matcher.accept(ord("a"))
    assert not matcher.accept(ord("a"))
    assert matcher.accept(ord("b")) and matcher.accept(end) and matcher.is_terminated()
    matcher.rollback(2)
    mask = new_mask(byte_vocabulary.size)
    matcher.fill(mask)
    assert tokens_of(mask) == [ord("b"), ord("c"), *byte_vocabulary.end_tokens]


def test_a_grammar_that_can_go_no_further_waits_for_the_end_token(
    llguidance_backend: LlguidanceBackend, byte_vocabulary: Vocabulary
) -> None:
    matcher = llguidance_backend.compile(Text("a"), param="").matcher()
    assert matcher.accept(ord("a")) and not matcher.is_terminated()
    mask = new_mask(byte_vocabulary.size)
    matcher.fill(mask)
    assert tokens_of(mask) == list(byte_vocabulary.end_tokens)


def test_forced_text_is_tokenized_as_the_model_would() -> None:
    words = (*(bytes([byte]) for byte in range(256)), b"", b'"nam', b"true", b"rue", b"e", "é".encode())

    def matcher_after(encode: object, *tokens: int) -> list[int]:
        vocabulary = Vocabulary(tokens=words, end_tokens=(256,), encode=encode)  # type: ignore[arg-type]
        matcher = LlguidanceBackend(vocabulary).compile(Json('{"const": true}'), param="").matcher()
        mask = new_mask(vocabulary.size)
        for token in tokens:
            assert matcher.accept(token)
        matcher.fill(mask)
        return tokens_of(mask)

    assert 258 in matcher_after(lambda text: [258] if text == "true" else [259])
    assert matcher_after(lambda text: [259], ord("t")) == [259]
    # A tokenizer that gives something else back is not believed.
    assert matcher_after(lambda text: [257], ord("t")) == [259]
    assert matcher_after(lambda text: [99999], ord("t")) == [259]


@pytest.mark.parametrize(
    ("pattern", "text"), [("a/b", "a/b"), (r"a\/b", "a/b"), ("[/]\\\\", "/\\"), ("a\nb", "a\nb")]
)
def test_slashes_and_line_ends_may_stand_in_a_pattern(
    pattern: str, text: str, llguidance_backend: LlguidanceBackend
) -> None:
    matcher = llguidance_backend.compile(Regex(pattern), param="").matcher()
    assert all(matcher.accept(byte) for byte in text.encode())
    assert matcher.accept(256)


@pytest.mark.parametrize("pattern", ["a(?=b)", "(a)\\1", "(", "a{2,1}"])
def test_patterns_that_it_does_not_know_are_refused(
    pattern: str, llguidance_backend: LlguidanceBackend
) -> None:
    with pytest.raises(GrammarRefusedError) as refused:
        llguidance_backend.compile(Regex(pattern), param="guided_regex")
    assert refused.value.param == "guided_regex"
