"""Owns the text that has been received and not yet been understood.

Each question is answered from the text alone, never from how it was cut into pieces: where more text could
change the answer, there is none yet. Nothing is looked at more than a marker's length twice, so that any
text takes linear time.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple


class Taken(NamedTuple):
    """Text that was consumed, and the marker after it, if that was reached."""

    text: str
    marker: str | None


@lru_cache(maxsize=256)
def _pattern(markers: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(marker) for marker in sorted(markers, key=len, reverse=True)))


class TextWindow:
    """A queue of characters.

    Attributes:
        ended: whether all of the text has been pushed.
        examined: characters that were looked at or copied so far: a test bounds it.
    """

    def __init__(self) -> None:
        self.ended = False
        self.examined = 0
        self._text = ""
        self._at = 0

    def push(self, text: str) -> None:
        """Add `text` at the end."""
        # Once per piece of input, never per step: a cut in every step would be quadratic.
        self.examined += len(self._text) - self._at
        self._text = self._text[self._at :] + text
        self._at = 0

    @property
    def empty(self) -> bool:
        """Whether everything has been consumed."""
        return self._at == len(self._text)

    def rest(self) -> str:
        """Consume everything."""
        rest, self._at = self._text[self._at :], len(self._text)
        return rest

    def until(self, *markers: str) -> Taken:
        """Consume up to the first of `markers`, and that too.

        Without one, all is consumed but a tail that one of them could begin with.
        """
        begin = self._at
        found = _pattern(markers).search(self._text, begin)
        if found is not None and (self.ended or not self._could_grow(found, markers)):
            self.examined += found.end() - begin
            self._at = found.end()
            return Taken(self._text[begin : found.start()], found[0])
        self.examined += len(self._text) - begin
        limit = len(self._text) if found is None else found.start()
        self._at = limit if self.ended else limit - self._held(markers, limit)
        return Taken(self._text[begin : self._at], None)

    def _could_grow(self, found: re.Match[str], markers: tuple[str, ...]) -> bool:
        """Whether a longer marker may begin where a shorter one was found, at the end of the text."""
        tail = self._text[found.start() :]
        return any(len(marker) > len(tail) and marker.startswith(tail) for marker in markers)

    def _held(self, markers: tuple[str, ...], limit: int) -> int:
        longest = max(map(len, markers)) - 1
        for size in range(min(longest, limit - self._at), 0, -1):
            tail = self._text[limit - size : limit]
            if any(marker.startswith(tail) for marker in markers):
                return size
        return 0

    def skip(self, marker: str) -> bool | None:
        """Consume `marker` if the text begins with it; None while that is not known."""
        if self._text.startswith(marker, self._at):
            self.examined += len(marker)
            self._at += len(marker)
            return True
        if not self.ended and marker.startswith(self._text[self._at : self._at + len(marker)]):
            return None
        return False

    def match(self, pattern: re.Pattern[str]) -> str:
        """Consume as much as `pattern` matches here, possibly nothing.

        Args:
            pattern: of a kind that matches text in pieces as well as whole: a run of one class of characters.
        """
        found = pattern.match(self._text, self._at)
        if found is None:
            return ""
        self.examined += found.end() - self._at
        self._at = found.end()
        return found[0]

    def peek(self) -> str:
        """The next character, or nothing."""
        return self._text[self._at : self._at + 1]

    def take(self) -> str:
        """Consume one character; nothing where there is none."""
        character = self.peek()
        self._at += len(character)
        self.examined += len(character)
        return character
