import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mach_decode.stop_strings import StopStrings

ALPHABET = st.sampled_from("ab\nc")
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3)


def by_pieces(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    search = StopStrings(stops)
    text = "".join(search.feed(piece) for piece in pieces)
    return text + search.flush(), search.found


def plainly(stops: list[str], text: str) -> tuple[str, str | None]:
    """The first stop string to be complete, reading character by character; the longest of two at once."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


@example(stops=["abc", "b"], text="abc", cuts=set())
@example(stops=["aab"], text="aaab", cuts={1, 2, 3})
@example(stops=["ab", "bb"], text="abb", cuts={2})
@given(stops=STOPS, text=st.text(ALPHABET, max_size=14), cuts=st.sets(st.integers(0, 14)))
def test_however_the_text_is_cut_the_same_comes_out(stops, text, cuts) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    assert by_pieces(stops, pieces) == plainly(stops, text)


@given(stops=STOPS, pieces=st.lists(st.text(ALPHABET, max_size=4), max_size=8))
def test_no_more_is_held_back_than_could_still_become_a_stop_string(stops, pieces) -> None:
    search = StopStrings(stops)
    given_text = out = ""
    for piece in pieces:
        given_text += piece
        out += search.feed(piece)
        if search.found is not None:
            return
        held = given_text[len(out) :]
        assert given_text.startswith(out)
        assert not held or any(stop.startswith(held) for stop in stops)


def test_nothing_comes_after_a_stop_string() -> None:
    search = StopStrings(["END"])
    assert search.feed("one EN") == "one "
    assert search.feed("D two") == ""
    assert search.found == "END"
    assert search.feed("three") + search.flush() == ""


@pytest.mark.parametrize("text", ["", "abc", "\ud7ff𝄞"])
def test_without_stop_strings_all_text_passes_at_once(text) -> None:
    search = StopStrings(())
    assert search.feed(text) == text
    assert search.flush() == ""
