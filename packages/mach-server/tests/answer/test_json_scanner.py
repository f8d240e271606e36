"""The scanner agrees with Python's parser about what JSON is, however its text is cut."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mach_server.answer.json_scanner import MAX_DEPTH, MAX_NUMBER, JsonScanner
from mach_server.answer.text_window import TextWindow

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)
TOKENS = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"',
    "\\",
    "\\u00e9",
    '"a"',
    "1",
    "-",
    ".",
    "e5",
    "0",
    "true",
    "nul",
    " ",
    "é",
]


def scanned(pieces: list[str], *, object_only: bool = False) -> tuple[str, JsonScanner, TextWindow]:
    window, scanner = TextWindow(), JsonScanner(object_only=object_only)
    consumed = ""
    for piece in pieces:
        window.push(piece)
        consumed += scanner.scan(window)
    window.ended = True
    consumed += scanner.scan(window)
    return consumed, scanner, window


@given(value=VALUES, ascii_only=st.booleans(), indent=st.sampled_from([None, 2]))
def test_a_value_is_read_to_its_end_and_no_further(
    value: object, ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    for pieces in ([text + " rest"], list(text + " rest")):
        consumed, scanner, window = scanned(pieces)
        assert consumed == text and scanner.done and not scanner.failed
        assert window.rest() == " rest"


@given(text=st.lists(st.sampled_from(TOKENS), max_size=10).map("".join))
def test_it_accepts_just_what_python_accepts(text: str) -> None:
    try:
        json.loads(text)
        valid = True
    except ValueError:
        valid = False
    consumed, scanner, window = scanned([text])
    assert (scanner.done and not window.rest().strip()) == valid
    assert scanned(list(text))[0] == consumed


@pytest.mark.parametrize(
    "text", ["NaN", "Infinity", "01", "1.", "+1", "'a'", '"\n"', "[1,]", '{"a":1,}', "\u00a01"]
)
def test_what_is_no_json_fails(text: str) -> None:
    _, scanner, window = scanned([text])
    assert not (scanner.done and not window.rest())


def test_depth_and_length_are_bounded() -> None:
    assert scanned(["[" * MAX_DEPTH + "]" * MAX_DEPTH])[1].done
    assert scanned(["[" * (MAX_DEPTH + 1)])[1].failed
    assert scanned(["1" * MAX_NUMBER])[1].done
    assert scanned(["1" * (MAX_NUMBER + 1)])[1].failed


@pytest.mark.parametrize("text", ["[{}]", "1", '"a"', "null"])
def test_only_an_object_may_be_asked_for(text: str) -> None:
    assert scanned([text], object_only=True)[1].failed
    assert scanned(['{"a": ' + text + "}"], object_only=True)[1].done
