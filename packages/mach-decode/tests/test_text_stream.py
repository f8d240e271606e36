import pytest

from mach_decode.text_stream import text_stream

TEXTS = ["  return x\n", "naïve café – 漢字 🙂\t\n\n    x", " <|im_start|>user\n<think> ", "a" * 50 + "\x00"]


def collect(tokenizer, tokens) -> list[str]:
    stream = text_stream(tokenizer)
    return [*(stream.feed(token) for token in tokens), stream.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_join_up_to_the_text_with_its_first_space(tokenizer, text) -> None:
    assert "".join(collect(tokenizer, tokenizer.encode(text, add_special_tokens=False))) == text


def test_a_character_comes_only_when_all_its_bytes_are_there(tokenizer) -> None:
    tokens = tokenizer.encode("🙂", add_special_tokens=False)
    pieces = collect(tokenizer, tokens)
    assert len(tokens) > 1, "one token shows nothing"
    assert [piece for piece in pieces if piece] == ["🙂"]


def test_bytes_that_never_become_a_character_are_replaced_at_the_end(tokenizer) -> None:
    tokens = tokenizer.encode("x🙂", add_special_tokens=False)[:-1]
    pieces = collect(tokenizer, tokens)
    assert "".join(pieces[:-1]) == "x"
    assert set(pieces[-1]) == {"\N{REPLACEMENT CHARACTER}"}


def test_two_streams_do_not_disturb_each_other(tokenizer) -> None:
    one, two = text_stream(tokenizer), text_stream(tokenizer)
    tokens = tokenizer.encode("def f(x): return x", add_special_tokens=False)
    pieces: tuple[list[str], list[str]] = ([], [])
    for token in tokens:
        pieces[0].append(one.feed(token))
        pieces[1].append(two.feed(token))
    assert pieces[0] == pieces[1] and "".join(pieces[0]) == "def f(x): return x"
