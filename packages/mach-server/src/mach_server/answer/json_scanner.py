"""Owns the piecemeal reading of one JSON value (RFC 8259): where it ends, and whether it is one."""

from __future__ import annotations

import re
from enum import Enum, auto

from mach_server.answer.text_window import TextWindow

MAX_DEPTH = 128
"""Nested objects and arrays; deeper ones are refused, because parsers of clients refuse them too."""
MAX_NUMBER = 512
"""Characters of a number."""

SPACE = re.compile(r"[ \t\n\r]+")
_STRING_RUN = re.compile(r'[^"\\\x00-\x1f]+')
_NUMBER_RUN = re.compile(r"[-+.eE0-9]+")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_HEX = frozenset("0123456789abcdefABCDEF")
_LITERALS = {"t": "true", "f": "false", "n": "null"}


class _Next(Enum):
    VALUE = auto()
    VALUE_OR_END = auto()
    KEY = auto()
    KEY_OR_END = auto()
    COLON = auto()
    COMMA_OR_END = auto()
    STRING = auto()
    ESCAPE = auto()
    HEX = auto()
    NUMBER = auto()
    LITERAL = auto()


class JsonScanner:
    """Reads one value from a window, as far as that goes.

    Attributes:
        done: the value is complete.
        failed: the next character cannot belong to it (or the number just read is none).
    """

    def __init__(self, *, object_only: bool = False) -> None:
        """Args: object_only: whether a value other than an object is refused."""
        self.done = self.failed = False
        self._object_only = object_only
        self._next = _Next.VALUE
        self._open: list[str] = []
        self._in_key = False
        self._hex_left = 0
        self._literal = ""
        self._number = ""

    def scan(self, window: TextWindow) -> str:
        """Consume what belongs to the value; leading white space is taken for part of it.

        Returns:
            What was consumed. With neither `done` nor `failed` set, more text is needed.
        """
        parts: list[str] = []
        while not (self.done or self.failed):
            piece = self._step(window)
            if piece is None:
                break
            parts.append(piece)
        return "".join(parts)

    def _step(self, window: TextWindow) -> str | None:
        """Consume one piece, possibly an empty one; None where more text is needed or the value is over."""
        match self._next:
            case _Next.STRING:
                return self._string(window)
            case _Next.ESCAPE:
                return self._escape(window)
            case _Next.HEX:
                return self._hex(window)
            case _Next.NUMBER:
                return self._digits(window)
            case _Next.LITERAL:
                return self._word(window)
        space = window.match(SPACE)
        if space:
            return space
        character = window.peek()
        if not character:
            return None
        if not self._accepts(character):
            return self._fail()
        return "" if self._next in (_Next.NUMBER, _Next.LITERAL) else window.take()

    def _fail(self) -> str | None:
        self.failed = True
        return None

    def _accepts(self, character: str) -> bool:
        """Move on over a character between tokens, or at a token's beginning."""
        expected = self._next
        if character in "}]" and expected in (_Next.VALUE_OR_END, _Next.KEY_OR_END, _Next.COMMA_OR_END):
            return self._close(character)
        if expected is _Next.COMMA_OR_END:
            self._next = _Next.KEY if self._open[-1] == "{" else _Next.VALUE
            return character == ","
        if expected is _Next.COLON:
            self._next = _Next.VALUE
            return character == ":"
        if expected in (_Next.KEY, _Next.KEY_OR_END):
            self._next, self._in_key = _Next.STRING, True
            return character == '"'
        return self._begin_value(character)

    def _begin_value(self, character: str) -> bool:
        if character in "{[":
            self._open.append(character)
            self._next = _Next.KEY_OR_END if character == "{" else _Next.VALUE_OR_END
            refused = self._object_only and self._open == ["["]
            return len(self._open) <= MAX_DEPTH and not refused
        if not self._open and self._object_only:
            return False
        if character == '"':
            self._next, self._in_key = _Next.STRING, False
        elif character in "-0123456789":
            self._next, self._number = _Next.NUMBER, ""
        elif character in _LITERALS:
            self._next, self._literal = _Next.LITERAL, _LITERALS[character]
        else:
            return False
        return True

    def _close(self, character: str) -> bool:
        if not self._open or self._open[-1] != ("{" if character == "}" else "["):
            return False
        self._open.pop()
        self._value_over()
        return True

    def _value_over(self) -> None:
        self._next = _Next.COMMA_OR_END
        self.done = not self._open

    def _string(self, window: TextWindow) -> str | None:
        run = window.match(_STRING_RUN)
        if run:
            return run
        character = window.peek()
        if not character:
            return None
        if character == "\\":
            self._next = _Next.ESCAPE
        elif character != '"':
            return self._fail()
        elif self._in_key:
            self._next = _Next.COLON
        else:
            self._value_over()
        return window.take()

    def _escape(self, window: TextWindow) -> str | None:
        character = window.peek()
        if not character:
            return None
        if character == "u":
            self._next, self._hex_left = _Next.HEX, 4
        elif character in '"\\/bfnrt':
            self._next = _Next.STRING
        else:
            return self._fail()
        return window.take()

    def _hex(self, window: TextWindow) -> str | None:
        character = window.peek()
        if not character:
            return None
        if character not in _HEX:
            return self._fail()
        self._hex_left -= 1
        if not self._hex_left:
            self._next = _Next.STRING
        return window.take()

    def _digits(self, window: TextWindow) -> str | None:
        run = window.match(_NUMBER_RUN)
        if run:
            # One character more than allowed is enough to know, and keeps this linear.
            self._number += run[: MAX_NUMBER + 1 - len(self._number)]
            return run
        if window.empty and not window.ended:
            return None
        if len(self._number) > MAX_NUMBER or not _NUMBER.fullmatch(self._number):
            return self._fail()
        self._value_over()
        return ""

    def _word(self, window: TextWindow) -> str | None:
        taken = window.skip(self._literal)
        if taken is None:
            return None
        if not taken:
            return self._fail()
        self._value_over()
        return self._literal
