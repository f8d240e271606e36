"""Owns the wire format of Qwen3-Coder and Qwen3.5.

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>

A value's type comes from the tool's schema; the newline after its opening tag and the one before its closing
tag are markup. Calls without the outer tags are understood, because the models forget them.
"""

from __future__ import annotations

import re

from mach_server.answer.call_writer import NewId, random_call_id
from mach_server.answer.dialect import Dialect
from mach_server.answer.parameters import ArgumentsObject, Schemas

BEGIN, END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
_NAME = re.compile(r"[^\s<>\"{}]+")


class Qwen3Coder(Dialect):
    """Reads calls in tags, parameter by parameter."""

    def __init__(self, schemas: Schemas, new_id: NewId = random_call_id) -> None:
        """Args: schemas: of the tools, for the types of values."""
        super().__init__(new_id)
        self._schemas = schemas
        self._name: list[str] = []
        self._arguments: ArgumentsObject | None = None

    def _content(self) -> bool:
        text, marker = self.window.until(BEGIN, FUNCTION)
        self.out.text(text)
        if marker is None:
            return False
        self.out.open(marker)
        self._name = []
        return self._to(self._function if marker == BEGIN else self._function_name)

    def _function(self) -> bool:
        self._space()
        return self._expect(FUNCTION, self._function_name)

    def _function_name(self) -> bool:
        name = self._read_name()
        if name is None:
            return False
        if not name:
            return self._fail()
        self.out.start(name)
        self._arguments = ArgumentsObject(self.out, self._schemas.get(name))
        return self._to(self._next_parameter)

    def _read_name(self) -> str | None:
        """A name up to `>`; None while it is not complete, empty where there is none."""
        piece = self.window.match(_NAME)
        self.out.consumed(piece)
        self._name.append(piece)
        if not self.window.peek():
            return None
        name = "".join(self._name)
        self._name = []
        if self.window.peek() != ">":
            return ""
        self.out.consumed(self.window.take())
        return name

    def _next_parameter(self) -> bool:
        assert self._arguments is not None, "a call that has begun"
        self._space()
        if (found := self.window.skip(PARAMETER)) is not False:
            if found:
                self.out.consumed(PARAMETER)
                return self._to(self._parameter_name)
            return False
        if (found := self.window.skip(FUNCTION_END)) is not True:
            return False if found is None else self._fail()
        self.out.consumed(FUNCTION_END)
        self._arguments.close()
        self.out.end()
        return self._to(self._closing_tag)

    def _parameter_name(self) -> bool:
        assert self._arguments is not None, "a call that has begun"
        name = self._read_name()
        if name is None:
            return False
        if not name or not self._arguments.begin(name):
            return self._fail()
        return self._to(self._first_newline)

    def _first_newline(self) -> bool:
        if not self.window.peek():
            return False
        if self.window.peek() == "\n":
            # It may be the one before the closing tag too, where the value is empty.
            found = self.window.skip("\n" + PARAMETER_END)
            if found is None:
                return False
            if found:
                return self._value_over("\n" + PARAMETER_END)
            self.out.consumed(self.window.take())
        return self._to(self._value)

    def _value(self) -> bool:
        assert self._arguments is not None, "a call that has begun"
        text, marker = self.window.until("\n" + PARAMETER_END, PARAMETER_END)
        self.out.consumed(text)
        self._arguments.more(text)
        return False if marker is None else self._value_over(marker)

    def _value_over(self, marker: str) -> bool:
        assert self._arguments is not None, "a call that has begun"
        self.out.consumed(marker)
        self._arguments.end()
        return self._to(self._next_parameter)

    def _closing_tag(self) -> bool:
        return self._closing(END)
