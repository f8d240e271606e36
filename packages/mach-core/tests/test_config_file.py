import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mach.errors import CheckpointNotFoundError, ConfigError
from mach.io.config_file import ConfigFields, parse_json_object, read_config

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def test_a_missing_file_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=str(tmp_path / "config.json")):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not valid JSON"),
        (b"[1]", "a JSON list, not an object"),
        (b'{"a": 1, "a": 2}', "'a' is given twice"),
        (b"\xff\xfe", "not UTF-8"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b"[" * 200_000, "nested too deeply|not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"<html>login</html>", "not valid JSON"),
    ],
)
def test_content_that_is_no_config_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=problem) as caught:
        read_config(tmp_path)
    assert caught.value.path == str(tmp_path / "config.json")


def test_a_huge_file_is_refused_without_reading_it_all(tmp_path: Path) -> None:
    with open(tmp_path / "config.json", "wb") as handle:
        handle.truncate(1 << 40)
    with pytest.raises(ConfigError, match="larger than"):
        read_config(tmp_path)


def test_things_that_are_no_regular_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="not a regular file"):
        read_config(tmp_path / "fifo")
    os.symlink("config.json", tmp_path / "config.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path)


def test_types_and_ranges_are_checked_with_the_field_named() -> None:
    fields = ConfigFields({"n": 5, "t": True, "s": "x", "l": [1, 2], "o": {"m": -1}, "z": None}, "c.json")
    assert fields.integer("n", low=0, high=9) == 5
    assert fields.integer("absent", low=0, high=9, default=3) == 3
    assert fields.integer("z", "n", low=0, high=9) == 5
    assert fields.integers("l", 0, 9, 2) == (1, 2)
    assert fields.sequence("absent", 1) is None
    nested = fields.object("o")
    assert nested is not None
    for refused, text in [
        (lambda: fields.integer("t", low=0, high=9), "c.json: t is a JSON boolean, expected an integer"),
        (lambda: fields.integer("n", low=0, high=4), "c.json: n is 5, outside 0 to 4"),
        (lambda: fields.integer("absent", low=0, high=4), "c.json: absent is missing"),
        (lambda: nested.integer("m", low=0, high=4), "c.json: o.m is -1, outside 0 to 4"),
        (lambda: fields.boolean("n", True), "c.json: n is a JSON number, expected true or false"),
        (lambda: fields.text("l"), "c.json: l is a JSON list, expected a string"),
        (lambda: fields.object("s"), "c.json: s is a JSON string, expected an object"),
        (lambda: fields.sequence("l", 1), "c.json: l has 2 items, more than 1"),
        (lambda: fields.integers("l", 2, 9, 2), "c.json: l must hold integers from 2 to 9"),
    ]:
        with pytest.raises(ConfigError, match=text):
            refused()


@given(JSON)
def test_any_json_is_an_object_or_a_config_error(document: object) -> None:
    raw = json.dumps(document).encode()
    if isinstance(document, dict):
        assert parse_json_object(raw, "c.json", 1 << 20).keys() == document.keys()
    else:
        with pytest.raises(ConfigError):
            parse_json_object(raw, "c.json", 1 << 20)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_a_config_error(raw: bytes) -> None:
    try:
        assert isinstance(parse_json_object(raw, "c.json", 100), dict)
    except ConfigError as error:
        assert "c.json" in str(error)


def test_numbers_are_finite_and_in_range() -> None:
    fields = ConfigFields({"a": 1, "b": 0.5, "c": None, "d": float("nan"), "e": 10**400, "f": True}, "x.json")
    assert [fields.number(name, low=0, high=1, default=7.0) for name in "abcz"] == [1.0, 0.5, 7.0, 7.0]
    for name in "def":
        with pytest.raises(ConfigError, match=f"x.json: {name} is"):
            fields.number(name, low=0, high=1, default=7.0)
