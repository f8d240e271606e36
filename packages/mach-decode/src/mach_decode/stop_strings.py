"""Owns the search for stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Holds back just the text that could still become a stop string.

    However the text is cut into pieces, the pieces that come out join up to the same text.

    Attributes:
        found: the stop string that ended the text; None so far.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Args: stops: not empty strings; the first to be complete wins, at its earliest place."""
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def feed(self, piece: str) -> str:
        """Text that is now certain not to be part of a stop string; empty after one was found."""
        if self.found is not None:
            return ""
        text = self._held + piece
        # Character by character, so that the answer does not depend on how the text was cut.
        places = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if places:
            _, at, self.found = min(places, key=lambda place: (place[0], place[1]))
            self._held = ""
            return text[:at]
        keep = self._possible_prefix(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _possible_prefix(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = max((len(stop) for stop in self._stops), default=0)
        for length in range(min(longest - 1, len(text)), 0, -1):
            end = text[len(text) - length :]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
