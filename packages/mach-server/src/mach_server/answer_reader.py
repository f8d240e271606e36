"""Owns the turning of an engine's steps into the events of an answer, and the count of what they took."""

from __future__ import annotations

from typing import NamedTuple

from mach_decode.logprobs import TokenLogprob
from mach_decode.request import StepEvent
from mach_server.answer.events import AnswerParser, Event, ReasoningDelta, ToolCallEnd
from mach_server.collected_answer import Outcome
from mach_server.expert_io import ExpertIO


class AnswerPart(NamedTuple):
    """What one step of the engine adds to an answer.

    Attributes:
        logprobs: of the tokens whose text came out in this step, whatever that became.
        prompt_logprobs: of prompt tokens.
    """

    events: list[Event]
    logprobs: tuple[TokenLogprob, ...]
    prompt_logprobs: tuple[TokenLogprob, ...]


class AnswerReader:
    """Reads one answer.

    Attributes:
        prefilled: prompt tokens processed.
        outcome: how it ended; None so far.
    """

    def __init__(self, parser: AnswerParser, prompt_tokens: int, *, one_call: bool = False) -> None:
        """Begin.

        Args:
            parser: what makes events of text.
            prompt_tokens: in the prompt.
            one_call: whether the first whole call ends the answer.
        """
        self.prefilled = 0
        self.outcome: Outcome | None = None
        self._parser, self._prompt_tokens, self._one_call = parser, prompt_tokens, one_call
        self._tokens = self._reasoning = self._undecided = self._calls = 0

    def feed(self, step: StepEvent) -> AnswerPart:
        """What `step` adds; not called any more once there is an outcome."""
        assert self.outcome is None, "an answer that has ended takes no more steps"
        self.prefilled = step.prefilled
        events = self._parser.feed(step.text) if step.text else []
        if step.finish_reason is not None:
            events += self._parser.finish()
        events = self._counted(events, step)
        if step.finish_reason is not None:
            self._end(step)
        elif self._one_call and self._calls:
            self._end(None)
        return AnswerPart(events, step.logprobs, step.prompt_logprobs)

    def _counted(self, events: list[Event], step: StepEvent) -> list[Event]:
        """The events up to the end of the only call allowed, with tokens and calls counted."""
        if step.token is not None:
            self._tokens += 1
            self._undecided += 1
        if events:
            # Tokens whose text was held back belong to what it then became.
            self._reasoning += self._undecided * isinstance(events[0], ReasoningDelta)
            self._undecided = 0
        for place, event in enumerate(events):
            if isinstance(event, ToolCallEnd) and event.complete:
                self._calls += 1
                if self._one_call:
                    return events[: place + 1]
        return events

    def _end(self, last: StepEvent | None) -> None:
        """The answer is over. Args: last: the engine's last step; None where more would have come."""
        cut = last is not None and last.finish_reason == "length"
        figures = None if last is None else last.figures
        self.outcome = Outcome(
            reason="length" if cut else "tool_calls" if self._calls else "stop",
            stop=None if last is None else last.stop,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._tokens,
            reasoning_tokens=self._reasoning,
            expert_io=None if figures is None else ExpertIO.of(figures),
        )
