"""Tokens' bytes: byte-level and SentencePiece tokenizers, control tokens, ids without a token."""

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteFallback, ByteLevel, Fuse, Replace, Sequence, WordPiece
from tokenizers.models import BPE

from mach.io.checkpoint_path import resolve_checkpoint
from mach_server.grammar.vocabulary import VocabularyError, vocabulary_of


def sentence_piece() -> Tokenizer:
    words = ["<unk>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁hello", "é", "▁"]
    tokenizer = Tokenizer(
        BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.decoder = Sequence([Replace("▁", " "), ByteFallback(), Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<eos>", '<|"|>', "<|tool_call>", "<turn|>"])
    tokenizer.add_tokens([AddedToken("▁▁", special=False)])
    return tokenizer


def test_sentence_piece_tokens_become_bytes() -> None:
    tokenizer = sentence_piece()
    vocabulary = vocabulary_of(tokenizer, logits=300, end_tokens={1})
    assert vocabulary.tokens[2:258] == tuple(bytes([byte]) for byte in range(256))
    number = tokenizer.token_to_id
    spelled = {word: vocabulary.tokens[number(word)] for word in ("▁hello", "é", "▁", "<unk>", "<turn|>")}
    assert spelled == {"▁hello": b" hello", "é": "é".encode(), "▁": b" ", "<unk>": b"", "<turn|>": b""}
    assert vocabulary.tokens[number('<|"|>')] == b'<|"|>'
    assert vocabulary.tokens[number("<|tool_call>")] == b"<|tool_call>"
    assert vocabulary.tokens[number("▁▁")] == "▁▁".encode()
    assert vocabulary.tokens[-1] == b"" and vocabulary.size == 300
    assert vocabulary.end_tokens == (1,)


def test_the_bytes_of_a_byte_level_tokenizer_join_up_to_the_text() -> None:
    tokenizer = Tokenizer.from_file(str(resolve_checkpoint("mach-pico") / "tokenizer.json"))
    vocabulary = vocabulary_of(tokenizer, logits=8192, end_tokens={8180})
    text = 'Héllo 😀 <think>\n\ttool</think> {"a": 1}'
    ids = vocabulary.encode(text)
    assert b"".join(vocabulary.tokens[i] for i in ids) == text.encode()
    assert vocabulary.tokens[tokenizer.token_to_id("<think>")] == b"<think>"
    assert vocabulary.tokens[8180] == vocabulary.tokens[tokenizer.token_to_id("<|im_start|>")] == b""


def test_more_tokens_than_logits_are_cut_off() -> None:
    vocabulary = vocabulary_of(sentence_piece(), logits=100, end_tokens={1, 250})
    assert vocabulary.size == 100 and vocabulary.end_tokens == (1,)


def test_other_kinds_of_tokenizers_are_refused() -> None:
    tokenizer = Tokenizer(BPE({"a": 0}, []))
    tokenizer.decoder = WordPiece()
    with pytest.raises(VocabularyError, match="WordPiece"):
        vocabulary_of(tokenizer, logits=1, end_tokens={0})
    tokenizer.decoder = ByteLevel()
    with pytest.raises(VocabularyError, match="end token"):
        vocabulary_of(tokenizer, logits=1, end_tokens=())
