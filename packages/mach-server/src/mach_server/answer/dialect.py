"""Owns what the parsers of all wire formats share: a window, a writer, and a state that is a method."""

from __future__ import annotations

from collections.abc import Callable

from mach_server.answer.call_writer import CallWriter, NewId, random_call_id
from mach_server.answer.events import Event
from mach_server.answer.json_scanner import SPACE
from mach_server.answer.text_window import TextWindow


class Dialect:
    """A state machine over a window of text.

    A state is a method that reads what it can, and returns whether it got on: False asks for more text. It
    decides by the text alone, never by how that was cut. A subclass sets the first state.
    """

    def __init__(self, new_id: NewId = random_call_id) -> None:
        self.window = TextWindow()
        self.out = CallWriter(new_id)
        self.state: Callable[[], bool] = self._content
        self._gap: list[str] = []

    def feed(self, text: str) -> list[Event]:
        """See `AnswerParser`."""
        self.window.push(text)
        self._run()
        return self.out.fetch()

    def finish(self) -> list[Event]:
        """See `AnswerParser`."""
        self.window.ended = True
        self._run()
        self._at_end()
        while self.out.opened:
            self._fail()
            self._run()
        assert self.window.empty, "every character has been given out"
        return self.out.fetch()

    def _run(self) -> None:
        while self.state():
            pass

    def _content(self) -> bool:
        """Plain text: all there is."""
        self.out.text(self.window.rest())
        return False

    def _at_end(self) -> None:
        """The text is over: complete what can be completed. A call that is still open then fails."""

    def _to(self, state: Callable[[], bool]) -> bool:
        self.state = state
        return True

    def _fail(self) -> bool:
        """The call is none; what follows is text again."""
        self.out.fail()
        return self._to(self._content)

    def _expect(self, marker: str, then: Callable[[], bool]) -> bool:
        """Read `marker`, a part of a call's markup, and go on with `then`; anything else fails the call."""
        found = self.window.skip(marker)
        if found is None:
            return False
        if not found:
            return self._fail()
        self.out.consumed(marker)
        return self._to(then)

    def _space(self) -> None:
        """Pass over white space inside a call."""
        self.out.consumed(self.window.match(SPACE))

    def _closing(self, marker: str) -> bool:
        """A call is complete; read the tag that should follow. Without it the next text is text."""
        self._gap.append(self.window.match(SPACE))
        found = self.window.skip(marker)
        if found is None:
            return False
        if not found:
            self.out.text("".join(self._gap))
        self._gap = []
        return self._to(self._content)
