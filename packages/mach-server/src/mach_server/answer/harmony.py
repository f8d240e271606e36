"""Owns the wire format of gpt-oss: a row of messages, each with a header that names channel and recipient.

    <|channel|>analysis<|message|>REASONING<|end|><|start|>assistant<|channel|>commentary
    to=functions.NAME <|constrain|>json<|message|>{…}<|call|>

The channel `analysis` is reasoning; `final`, and `commentary` without a recipient, are text; a message with a
recipient is a tool call. The text must contain the control tokens, apart from the one that ended generation.
A prompt ends with `<|start|>assistant`, so that an answer begins in the middle of a header; one that has no
header at all is text.
"""

from __future__ import annotations

import re

from mach_server.answer.call_writer import NewId, random_call_id
from mach_server.answer.dialect import Dialect
from mach_server.answer.events import ReasoningDelta
from mach_server.answer.json_scanner import SPACE, JsonScanner

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
TERMINATORS = ("<|end|>", "<|return|>", "<|call|>")
PREFIX = "functions."
_RECIPIENT = re.compile(r"(?:^|\s)to=([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*([a-z]*)")


class Harmony(Dialect):
    """Reads messages; reasoning is part of the format, so that no other parser comes before this one."""

    def __init__(self, new_id: NewId = random_call_id, *, calls: bool = True) -> None:
        """Args: calls: whether a message with a recipient is a call; else it is text, header and all."""
        super().__init__(new_id)
        self.state = self._beginning
        self._calls = calls
        self._arguments = JsonScanner()
        self._header: list[str] = []
        self._name = ""

    @property
    def reasoning(self) -> bool:
        """Whether what comes next is reasoning, as far as is known."""
        return self.state == self._reasoning

    @property
    def may_reason(self) -> bool:
        """Whether reasoning may go on or begin: another such message always may."""
        return True

    def _beginning(self) -> bool:
        """The rest of a header, or plain text."""
        self._gap.append(self.window.match(SPACE))
        undecided = False
        for marker in (CHANNEL, START, "to="):
            found = self.window.skip(marker)
            if found:
                return self._open("".join(self._gap) + marker)
            undecided = undecided or found is None
        if undecided:
            return False
        self.out.text("".join(self._gap))
        self._gap = []
        return self._to(self._content)

    def _open(self, markup: str) -> bool:
        """A header begins. It is kept, like a call, until it is known to be one."""
        self._gap = []
        self.out.open(markup)
        self._header = [markup]
        return self._to(self._read_header)

    def _content(self) -> bool:
        """Between messages, and in text without any."""
        text, marker = self.window.until(START, CHANNEL, *TERMINATORS)
        self.out.text(text)
        if marker is None:
            return False
        return True if marker in TERMINATORS else self._open(marker)

    def _read_header(self) -> bool:
        text, marker = self.window.until(MESSAGE, START, *TERMINATORS)
        self.out.consumed(text)
        self._header.append(text)
        if marker is None:
            return False
        if marker != MESSAGE:
            self.out.fail()
            return self._open(marker) if marker == START else self._to(self._content)
        self.out.consumed(marker)
        header = "".join(self._header)
        recipient = _RECIPIENT.search(header)
        if recipient is not None and recipient[1] != PREFIX:
            self._name = recipient[1].removeprefix(PREFIX)
            if not self._calls:
                return self._fail()
            return self._to(self._before_arguments)
        channel = _CHANNEL.search(header)
        self.out.drop()
        return self._to(self._reasoning if channel and channel[1] == "analysis" else self._content)

    def _reasoning(self) -> bool:
        text, marker = self.window.until(START, CHANNEL, *TERMINATORS)
        self.out.events.append(ReasoningDelta(text))
        if marker is None:
            return False
        return self._to(self._content) if marker in TERMINATORS else self._open(marker)

    def _before_arguments(self) -> bool:
        self._space()
        if not self.window.peek():
            return False
        if self.window.peek() != "{":
            return self._no_arguments()
        self.out.start(self._name)
        self._arguments = JsonScanner(object_only=True)
        return self._to(self._read_arguments)

    def _no_arguments(self) -> bool:
        """A function without parameters may be called with nothing; anything else is no call."""
        for marker in TERMINATORS:
            if (found := self.window.skip(marker)) is not False:
                if found is None:
                    return False
                self._empty_call()
                return self._to(self._content)
        return self._fail()

    def _empty_call(self) -> None:
        self.out.start(self._name)
        self.out.arguments("{}")
        self.out.end()

    def _read_arguments(self) -> bool:
        piece = self._arguments.scan(self.window)
        self.out.consumed(piece)
        self.out.arguments(piece)
        if self._arguments.failed:
            return self._fail()
        if not self._arguments.done:
            return False
        self.out.end()
        return self._to(self._content)

    def _at_end(self) -> None:
        if self.state == self._before_arguments:  # the token that ended generation is not in the text
            self._empty_call()
            self.state = self._content
