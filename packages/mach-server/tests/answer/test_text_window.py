"""A window finds markers as soon as they are certain, and holds back no more than could be one."""

import re

from hypothesis import given
from hypothesis import strategies as st

from mach_server.answer.text_window import Taken, TextWindow


def test_what_could_begin_a_marker_is_held_back() -> None:
    window = TextWindow()
    window.push("abc <to")
    assert window.until("<tool>") == Taken("abc ", None)
    window.push("p")
    assert window.until("<tool>") == Taken("<top", None)
    window.push("<tool")
    assert window.until("<tool>") == Taken("", None)
    window.push(">x")
    assert window.until("<tool>") == Taken("", "<tool>")
    assert window.rest() == "x"


def test_at_the_end_nothing_is_held_back() -> None:
    window = TextWindow()
    window.push("abc <to")
    window.ended = True
    assert window.until("<tool>") == Taken("abc <to", None)
    assert window.empty


def test_a_longer_marker_wins_over_a_shorter_one_at_the_same_place() -> None:
    window = TextWindow()
    window.push("a<b")
    assert window.until("<b", "<b>") == Taken("a", None)
    window.push(">")
    assert window.until("<b", "<b>") == Taken("", "<b>")
    window.push("<b")
    window.ended = True
    assert window.until("<b", "<b>") == Taken("", "<b")


def test_skip_waits_while_it_cannot_know() -> None:
    window = TextWindow()
    assert window.skip("abc") is None
    window.push("ab")
    assert window.skip("abc") is None
    assert window.skip("ax") is False
    window.push("c")
    assert window.skip("abc") is True
    window.ended = True
    assert window.skip("abc") is False


@given(text=st.text("ab<>/\n", max_size=40), places=st.lists(st.integers(0, 40), max_size=6))
def test_parts_do_not_depend_on_the_cuts(text: str, places: list[int]) -> None:
    markers = ("\n</a>", "</a>", "<b")
    edges = sorted({min(place, len(text)) for place in places} | {0, len(text)})
    window, parts, text_so_far = TextWindow(), [], ""
    for begin, end in [*zip(edges, edges[1:], strict=False), (len(text), len(text))]:
        window.push(text[begin:end])
        window.ended = begin == len(text)
        while True:
            piece, marker = window.until(*markers)
            text_so_far += piece
            if marker is None:
                break
            parts += [text_so_far, marker]
            text_so_far = ""
    assert [*parts, text_so_far] == re.split("(" + "|".join(map(re.escape, markers)) + ")", text)
