"""Owns a tool call on its way out: its index and id, its arguments' JSON, and its raw text if it fails."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable

from mach_server.answer.events import Event, TextDelta, ToolCallArguments, ToolCallEnd, ToolCallStart

NewId = Callable[[], str]


def random_call_id() -> str:
    """An id as OpenAI's clients expect it."""
    return f"call_{secrets.token_hex(12)}"


class CallWriter:
    """Collects the events of one answer, and knows whether a call is being read.

    Between `open` and the end of a call, all text that is consumed for it goes through `consumed`, so that a
    call that turns out not to be one can be given back in full.

    Attributes:
        events: what has been written and not yet been fetched.
        opened: whether a call is being read.
        started: whether the present call's start has been written: its name cannot be taken back.
    """

    def __init__(self, new_id: NewId = random_call_id) -> None:
        self.events: list[Event] = []
        self.opened = self.started = False
        self._new_id = new_id
        self._calls = 0
        self._raw: list[str] = []

    def fetch(self) -> list[Event]:
        """The events since the last time."""
        events, self.events = self.events, []
        return events

    def text(self, text: str) -> None:
        """Plain text of the answer."""
        self.events.append(TextDelta(text))

    def open(self, markup: str) -> None:
        """A call seems to begin with `markup`."""
        self._raw = [markup]
        self.opened, self.started = True, False

    def consumed(self, markup: str) -> None:
        """`markup` belongs to the call."""
        self._raw.append(markup)

    def start(self, name: str) -> None:
        """The call is one, as far as can be told: its name is known and its arguments begin."""
        self.started = True
        self.events.append(ToolCallStart(self._calls, self._new_id(), name))

    def arguments(self, fragment: str) -> None:
        """More of its arguments."""
        self.events.append(ToolCallArguments(self._calls, fragment))

    def end(self) -> None:
        """The call is complete."""
        assert self.started, "a call that never started does not end"
        self.events.append(ToolCallEnd(self._calls))
        self._close()

    def fail(self) -> None:
        """It is no call, or none that can be used: its text comes back unless it has been started."""
        raw = "".join(self._raw)
        if self.started:
            self.events.append(ToolCallEnd(self._calls, complete=False, raw=raw))
        else:
            self.text(raw)
        self._close()

    def drop(self) -> None:
        """What was read was markup of something that is no call."""
        assert not self.started, "a started call is ended"
        self._close()

    def _close(self) -> None:
        self._calls += self.started
        self._raw = []
        self.opened = self.started = False


def json_text(value: object) -> str:
    """Compact JSON, non-ASCII characters as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


def escaped(text: str) -> str:
    """`text` as the inside of a JSON string. Characters are escaped one by one, so that pieces join up."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
