"""Owns the wire format of Hermes and Qwen3: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.

The members may come in any order; `parameters` is taken for `arguments`, and other members are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from mach_server.answer.dialect import Dialect
from mach_server.answer.json_scanner import JsonScanner

BEGIN, END = "<tool_call>", "</tool_call>"
MAX_NAME = 256
"""Characters of a function's name, or of a member's, quotes and escapes included."""
_ARGUMENTS = ("arguments", "parameters")


class Hermes(Dialect):
    """Reads JSON calls between tags."""

    _name: str | None
    _early: list[str] | None
    _key: str
    _value: JsonScanner
    _word: list[str]
    _had_arguments: bool

    def _content(self) -> bool:
        text, marker = self.window.until(BEGIN)
        self.out.text(text)
        if marker is None:
            return False
        self.out.open(marker)
        self._name, self._early, self._had_arguments = None, None, False
        return self._to(self._open_object)

    def _open_object(self) -> bool:
        self._space()
        return self._expect("{", self._first_key)

    def _first_key(self) -> bool:
        self._space()
        if self.window.peek() == "}":
            return self._fail()  # a call without a name
        return self._begin_word(self._read_key)

    def _next_key(self) -> bool:
        self._space()
        return self._begin_word(self._read_key)

    def _begin_word(self, then: Callable[[], bool]) -> bool:
        """A string that must be known as a whole."""
        if not self.window.peek():
            return False
        if self.window.peek() != '"':
            return self._fail()
        self._value, self._word = JsonScanner(), []
        return self._to(then)

    def _scan_word(self) -> str | None:
        """The string, decoded, once it is complete; an empty one for one that cannot be a name."""
        piece = self._value.scan(self.window)
        self.out.consumed(piece)
        self._word.append(piece)
        if not self._value.done:
            return None
        # Too long a word is refused when all of it is there: where it is cut must not matter.
        raw = "".join(self._word)
        word: str = json.loads(raw) if len(raw) <= MAX_NAME else ""
        return word

    def _read_key(self) -> bool:
        key = self._scan_word()
        if self._value.failed or key == "":
            return self._fail()
        if key is None:
            return False
        self._key = key
        return self._to(self._colon)

    def _colon(self) -> bool:
        self._space()
        return self._expect(":", self._begin_value)

    def _begin_value(self) -> bool:
        self._space()
        if not self.window.peek():
            return False
        if self._key == "name":
            return self._fail() if self._name is not None else self._begin_word(self._read_name)
        if self._key not in _ARGUMENTS:
            self._value = JsonScanner()
            return self._to(self._pass_over)
        if self._had_arguments or self.window.peek() != "{":
            return self._fail()
        self._had_arguments = True
        self._value = JsonScanner(object_only=True)
        if self._name is None:
            self._early = []  # nothing can be given out before the name
        else:
            self.out.start(self._name)
        return self._to(self._read_arguments)

    def _read_name(self) -> bool:
        name = self._scan_word()
        if self._value.failed or name == "":
            return self._fail()
        if name is None:
            return False
        self._name = name
        if self._early is not None:
            self.out.start(name)
            self.out.arguments("".join(self._early))
        return self._to(self._comma)

    def _read_arguments(self) -> bool:
        piece = self._value.scan(self.window)
        self.out.consumed(piece)
        if self._name is None:
            assert self._early is not None, "arguments before a name are kept"
            self._early.append(piece)
        else:
            self.out.arguments(piece)
        return self._after_value()

    def _pass_over(self) -> bool:
        self.out.consumed(self._value.scan(self.window))
        return self._after_value()

    def _after_value(self) -> bool:
        if self._value.failed:
            return self._fail()
        return self._to(self._comma) if self._value.done else False

    def _comma(self) -> bool:
        self._space()
        if not self.window.peek():
            return False
        if self.window.peek() != "}":
            return self._expect(",", self._next_key)
        if self._name is None:
            return self._fail()
        self.out.consumed(self.window.take())
        if not self.out.started:  # a function without parameters
            self.out.start(self._name)
            self.out.arguments("{}")
        self.out.end()
        return self._to(self._closing_tag)

    def _closing_tag(self) -> bool:
        """The call is complete by now, with its tag or without."""
        return self._closing(END)
