"""Owns the bodies and stream chunks of `/v1/chat/completions`; knows neither the engine nor HTTP."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from typing import Literal

import msgspec

from mach_decode.logprobs import TokenLogprob
from mach_decode.token_text import TokenTexts
from mach_server.answer.events import Event, ReasoningDelta, TextDelta, ToolCallArguments, ToolCallStart
from mach_server.answer_reader import AnswerPart
from mach_server.collected_answer import Block, CollectedAnswer, FinishReason, Outcome
from mach_server.errors import ApiError
from mach_server.event_stream import DONE, data_event
from mach_server.token_logprobs import TokenEntry, token_entries
from mach_server.usage import Usage


class ChoiceLogprobs(msgspec.Struct, kw_only=True):
    """Of every token of the answer, whatever its text became."""

    content: list[TokenEntry]
    refusal: None = None


class CalledFunction(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a call is to; in a chunk, what the chunk adds."""

    arguments: str
    name: str | None = None


class AnswerCall(msgspec.Struct, kw_only=True):
    """A whole call."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class AnswerMessage(msgspec.Struct, kw_only=True):
    """The assistant's message; content is null where there are only calls."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[AnswerCall] | msgspec.UnsetType = msgspec.UNSET
    reasoning: str | msgspec.UnsetType = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET


class Choice(msgspec.Struct, kw_only=True):
    """The one choice of an answer."""

    message: AnswerMessage
    finish_reason: FinishReason
    index: int = 0
    logprobs: ChoiceLogprobs | None = None


class ChatCompletion(msgspec.Struct, kw_only=True):
    """A whole answer."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"


class CallDelta(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a chunk adds to a call; its id, type and function's name come once."""

    index: int
    function: CalledFunction
    id: str | None = None
    type: Literal["function"] | None = None


class Delta(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What one chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallDelta] | None = None


class ChunkChoice(msgspec.Struct, kw_only=True):
    """The one choice of a chunk."""

    delta: Delta
    finish_reason: FinishReason | None = None
    index: int = 0
    logprobs: ChoiceLogprobs | None = None


class ChatCompletionChunk(msgspec.Struct, kw_only=True):
    """One event of a stream; `usage` is absent unless asked for, and null in all chunks but the last."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: Usage | None | msgspec.UnsetType = msgspec.UNSET


class ChatWriter:
    """Writes one answer, whole or in chunks, under one id."""

    def __init__(
        self,
        model: str,
        system_fingerprint: str,
        texts: TokenTexts,
        *,
        include_usage: bool = False,
        logprobs: bool = False,
    ) -> None:
        """Args: include_usage: whether the chunks have the key `usage`; logprobs: whether tokens are told."""
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model, self._fingerprint = model, system_fingerprint
        self._include_usage = include_usage
        self._texts, self._logprobs = texts, logprobs
        self._untold: list[TokenLogprob] = []

    def whole(self, answer: CollectedAnswer, outcome: Outcome) -> bytes:
        """The body of an answer that was not streamed."""
        calls = [_whole_call(block) for block in answer.calls]
        text, reasoning = answer.text, answer.reasoning or msgspec.UNSET
        message = AnswerMessage(
            content=None if calls and not text.strip() else text,
            tool_calls=calls or msgspec.UNSET,
            reasoning=reasoning,
            reasoning_content=reasoning,
        )
        choice = Choice(message=message, finish_reason=outcome.reason, logprobs=self._told(answer.logprobs))
        return msgspec.json.encode(
            ChatCompletion(
                id=self.id,
                created=self._created,
                model=self._model,
                system_fingerprint=self._fingerprint,
                choices=[choice],
                usage=Usage.of(outcome),
            )
        )

    def begin(self, prompt_tokens: int) -> bytes:
        """The chunk with the role."""
        return self._event([ChunkChoice(delta=Delta(role="assistant", content=""))])

    def part(self, part: AnswerPart) -> bytes:
        """A chunk for each event; the first carries the log-probabilities of all that has come."""
        self._untold += part.logprobs
        events = b""
        for event in part.events:
            delta = _delta(event)
            if delta is None:
                continue
            told = self._told(self._untold) if self._untold else None
            self._untold = []
            events += self._event([ChunkChoice(delta=delta, logprobs=told)])
        return events

    def end(self, outcome: Outcome) -> bytes:
        """The finish reason, the usage if it was asked for, and the end mark."""
        told = self._told(self._untold) if self._untold else None
        end = self._event([ChunkChoice(delta=Delta(), finish_reason=outcome.reason, logprobs=told)])
        return end + (self._event([], Usage.of(outcome)) if self._include_usage else b"") + DONE

    def failed(self, error: ApiError) -> bytes:
        """An event with `error` in a chunk's place."""
        return data_event(error.body())

    def _told(self, entries: Iterable[TokenLogprob]) -> ChoiceLogprobs | None:
        if not self._logprobs:
            return None
        return ChoiceLogprobs(content=token_entries(entries, self._texts))

    def _event(self, choices: list[ChunkChoice], usage: Usage | None = None) -> bytes:
        chunk = ChatCompletionChunk(
            id=self.id,
            created=self._created,
            model=self._model,
            system_fingerprint=self._fingerprint,
            choices=choices,
            usage=usage if self._include_usage else msgspec.UNSET,
        )
        return data_event(msgspec.json.encode(chunk))


def _whole_call(block: Block) -> AnswerCall:
    return AnswerCall(id=block.id, function=CalledFunction(name=block.name, arguments=block.text))


def _delta(event: Event) -> Delta | None:
    """What `event` adds to the message; the end of a call adds nothing."""
    match event:
        case TextDelta(text):
            return Delta(content=text)
        case ReasoningDelta(text):
            return Delta(reasoning=text, reasoning_content=text)
        case ToolCallStart(index, id, name):
            function = CalledFunction(name=name, arguments="")
            return Delta(tool_calls=[CallDelta(index=index, id=id, type="function", function=function)])
        case ToolCallArguments(index, fragment):
            return Delta(tool_calls=[CallDelta(index=index, function=CalledFunction(arguments=fragment))])
    return None
