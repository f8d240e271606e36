"""Owns the wire format of DeepSeek-V4.

    <｜DSML｜tool_calls>
    <｜DSML｜invoke name="NAME">
    <｜DSML｜parameter name="KEY" string="true">VALUE</｜DSML｜parameter>
    </｜DSML｜invoke>
    </｜DSML｜tool_calls>

`string` says whether a value is text or JSON. V4.1 writes the words after a space (`<｜DSML｜ invoke`), and
`calls` for `tool_calls`; both are understood.
"""

from __future__ import annotations

import re

from mach_server.answer.call_writer import NewId, random_call_id
from mach_server.answer.dialect import Dialect
from mach_server.answer.json_scanner import SPACE
from mach_server.answer.parameters import ArgumentsObject

BEGIN = ("<｜DSML｜tool_calls>", "<｜DSML｜ calls>")
END = {BEGIN[0]: "</｜DSML｜tool_calls>", BEGIN[1]: "</｜DSML｜ calls>"}
_ATTRIBUTE = re.compile(r'[^"<>]+')


class Dsml(Dialect):
    """Reads blocks of calls in DeepSeek's markup."""

    def __init__(self, new_id: NewId = random_call_id) -> None:
        super().__init__(new_id)
        self._block = BEGIN[0]
        self._attribute: list[str] = []
        self._key = ""
        self._arguments: ArgumentsObject | None = None

    def _tag(self, word: str) -> str:
        return ("｜DSML｜" if self._block == BEGIN[0] else "｜DSML｜ ") + word

    def _content(self) -> bool:
        text, marker = self.window.until(*BEGIN)
        self.out.text(text)
        if marker is None:
            return False
        self._block = marker
        self.out.open(marker)
        return self._to(self._invoke)

    def _invoke(self) -> bool:
        self._space()
        return self._expect(f'<{self._tag("invoke")} name="', self._invoke_name)

    def _read_attribute(self) -> str | None:
        """An attribute's value up to its quote; None while it is not complete, empty where there is none."""
        piece = self.window.match(_ATTRIBUTE)
        self.out.consumed(piece)
        self._attribute.append(piece)
        if not self.window.peek():
            return None
        value = "".join(self._attribute)
        self._attribute = []
        if self.window.peek() != '"':
            return ""
        self.out.consumed(self.window.take())
        return value

    def _invoke_name(self) -> bool:
        name = self._read_attribute()
        if name is None:
            return False
        if not name:
            return self._fail()
        self._key = name
        return self._to(self._invoke_close)

    def _invoke_close(self) -> bool:
        return self._expect(">", self._start)

    def _start(self) -> bool:
        self.out.start(self._key)
        self._arguments = ArgumentsObject(self.out, None)
        return self._to(self._next_parameter)

    def _next_parameter(self) -> bool:
        assert self._arguments is not None, "a call that has begun"
        self._space()
        parameter, end = f'<{self._tag("parameter")} name="', f"</{self._tag('invoke')}>"
        if (found := self.window.skip(parameter)) is not False:
            if found:
                self.out.consumed(parameter)
                return self._to(self._parameter_name)
            return False
        if (found := self.window.skip(end)) is not True:
            return False if found is None else self._fail()
        self.out.consumed(end)
        self._arguments.close()
        self.out.end()
        return self._to(self._next_call)

    def _parameter_name(self) -> bool:
        key = self._read_attribute()
        if key is None:
            return False
        if not key:
            return self._fail()
        self._key = key
        return self._to(self._type_attribute)

    def _type_attribute(self) -> bool:
        return self._expect(' string="', self._parameter_type)

    def _parameter_type(self) -> bool:
        assert self._arguments is not None, "a call that has begun"
        for word in ("true", "false"):
            if (found := self.window.skip(f'{word}">')) is not False:
                if found is None:
                    return False
                self.out.consumed(f'{word}">')
                if not self._arguments.begin(self._key, as_text=word == "true"):
                    return self._fail()
                return self._to(self._value)
        return self._fail()

    def _value(self) -> bool:
        assert self._arguments is not None, "a call that has begun"
        text, marker = self.window.until(f"</{self._tag('parameter')}>")
        self.out.consumed(text)
        self._arguments.more(text)
        if marker is None:
            return False
        self.out.consumed(marker)
        self._arguments.end()
        return self._to(self._next_parameter)

    def _next_call(self) -> bool:
        """A call is complete: another one, the end of the block, or plain text again."""
        self._gap.append(self.window.match(SPACE))
        invoke = f'<{self._tag("invoke")} name="'
        ends = self.window.skip(END[self._block])
        begins = None if ends else self.window.skip(invoke)
        if ends:
            self._gap = []
            return self._to(self._content)
        if begins:
            self.out.open("".join(self._gap) + invoke)
            self._gap = []
            return self._to(self._invoke_name)
        if ends is None or begins is None:
            return False
        self.out.text("".join(self._gap))
        self._gap = []
        return self._to(self._content)
