from types import SimpleNamespace

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from mach_decode.token_text import TokenTexts


@pytest.mark.parametrize(
    "text", ["def f(x):\n    return 'ß 七 🙂'", " leading", "<think>\n</think><|im_end|>"]
)
def test_the_bytes_of_tokens_join_up_to_the_text(tokenizer, text: str) -> None:
    texts = TokenTexts(tokenizer)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(texts.bytes_of(token) for token in tokens) == text.encode()


def test_every_token_of_the_vocabulary_has_bytes_and_no_other_has(tokenizer) -> None:
    texts = TokenTexts(tokenizer)
    assert all(texts.bytes_of(token) for token in range(len(tokenizer)))
    assert texts.bytes_of(len(tokenizer)) == b""
    assert texts.text_of(len(tokenizer) + 7) == ""


def test_a_part_of_a_character_shows_as_the_replacement_character(tokenizer) -> None:
    texts = TokenTexts(tokenizer)
    parts = [token for token in tokenizer.encode("🙂") if b"\x9f" in texts.bytes_of(token)]
    assert any("\ufffd" in texts.text_of(token) for token in parts)


def test_byte_fallback_and_word_marks_are_understood() -> None:
    vocabulary = {"<unk>": 0, "\u2581the": 1, "<0xE2>": 2, "end": 3}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens([AddedToken("<0xE2>control", special=True)])
    texts = TokenTexts(SimpleNamespace(backend_tokenizer=backend))
    assert [texts.bytes_of(token) for token in range(1, 5)] == [b" the", b"\xe2", b"end", b"<0xE2>control"]


def test_a_tokenizer_without_a_backend_decodes_token_by_token() -> None:
    slow = SimpleNamespace(decode=lambda tokens: f"<{tokens[0]}>")
    assert TokenTexts(slow).bytes_of(7) == b"<7>"
