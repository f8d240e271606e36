"""Owns the wire format of Gemma 4: `<|tool_call>call:NAME{key:<|"|>text<|"|>,n:1,l:[…],o:{…}}<tool_call|>`.

Keys are bare and strings stand between `<|"|>`, without escapes; keys and strings in JSON's own quotes are
understood too. Anything else bare that is no JSON value is taken as text.
"""

from __future__ import annotations

import re

from mach_server.answer.call_writer import NewId, escaped, json_text, random_call_id
from mach_server.answer.dialect import Dialect
from mach_server.answer.json_scanner import MAX_DEPTH, JsonScanner
from mach_server.answer.parameters import is_json

BEGIN, END, QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'
_NAME = re.compile(r"[^\s{}<>\"]+")
_BARE = re.compile(r"[^:,{}\[\]<\"]+")
_BARE_VALUE = re.compile(r"[^,{}\[\]<\"]+")


class Gemma4(Dialect):
    """Reads calls and turns their arguments into JSON as they come."""

    def __init__(self, new_id: NewId = random_call_id) -> None:
        super().__init__(new_id)
        self._word: list[str] = []
        self._nesting: list[str] = []
        self._in_key = False
        self._quoted = JsonScanner()

    def _content(self) -> bool:
        text, marker = self.window.until(BEGIN)
        self.out.text(text)
        if marker is None:
            return False
        self.out.open(marker)
        self._word, self._nesting = [], []
        return self._to(self._call)

    def _call(self) -> bool:
        self._space()
        return self._expect("call:", self._name)

    def _name(self) -> bool:
        piece = self.window.match(_NAME)
        self.out.consumed(piece)
        self._word.append(piece)
        if not self.window.peek():
            return False
        name, self._word = "".join(self._word), []
        if not name or self.window.peek() != "{":
            return self._fail()
        self.out.start(name)
        return self._enter()

    def _enter(self) -> bool:
        """Go into an object or a list."""
        bracket = self.window.take()
        self.out.consumed(bracket)
        self.out.arguments(bracket)
        self._nesting.append(bracket)
        if len(self._nesting) > MAX_DEPTH:
            return self._fail()
        return self._to(self._first_item)

    def _first_item(self) -> bool:
        self._space()
        if not self.window.peek():
            return False
        if self.window.peek() in "}]":
            return self._leave()
        return self._to(self._item)

    def _item(self) -> bool:
        """A key with its value, or a value."""
        self._in_key = self._nesting[-1] == "{"
        return self._to(self._scalar)

    def _scalar(self) -> bool:
        """A key, or a value that has just begun."""
        self._space()
        quote = self.window.skip(QUOTE)
        if quote is None:
            return False
        if quote:
            self.out.consumed(QUOTE)
            self.out.arguments('"')
            return self._to(self._text)
        if self.window.peek() == '"':
            self._quoted = JsonScanner()
            return self._to(self._json_text)
        if not self._in_key and self.window.peek() and self.window.peek() in "{[":
            return self._enter()
        return self._to(self._bare)

    def _text(self) -> bool:
        text, marker = self.window.until(QUOTE)
        self.out.consumed(text)
        self.out.arguments(escaped(text))
        if marker is None:
            return False
        self.out.consumed(marker)
        self.out.arguments('"')
        return self._scalar_over()

    def _json_text(self) -> bool:
        piece = self._quoted.scan(self.window)
        self.out.consumed(piece)
        self.out.arguments(piece)
        if self._quoted.failed:
            return self._fail()
        return self._scalar_over() if self._quoted.done else False

    def _bare(self) -> bool:
        piece = self.window.match(_BARE if self._in_key else _BARE_VALUE)
        self.out.consumed(piece)
        self._word.append(piece)
        if not self.window.peek():
            return False
        word, self._word = "".join(self._word).strip(), []
        if not word:
            return self._fail()
        self.out.arguments(json_text(word) if self._in_key or not is_json(word) else word)
        return self._scalar_over()

    def _scalar_over(self) -> bool:
        return self._to(self._colon if self._in_key else self._separator)

    def _colon(self) -> bool:
        self._space()
        if not self.window.peek():
            return False
        if self.window.peek() != ":":
            return self._fail()
        self.out.consumed(self.window.take())
        self.out.arguments(": ")
        self._in_key = False
        return self._to(self._scalar)

    def _separator(self) -> bool:
        self._space()
        following = self.window.peek()
        if not following:
            return False
        if following in "}]":
            return self._leave()
        if following != ",":
            return self._fail()
        self.out.consumed(self.window.take())
        self.out.arguments(", ")
        return self._to(self._item)

    def _leave(self) -> bool:
        bracket = self.window.peek()
        if self._nesting[-1] != ("{" if bracket == "}" else "["):
            return self._fail()
        self._nesting.pop()
        self.out.consumed(self.window.take())
        self.out.arguments(bracket)
        if self._nesting:
            return self._to(self._separator)
        self.out.end()
        return self._to(self._closing_tag)

    def _closing_tag(self) -> bool:
        return self._closing(END)
