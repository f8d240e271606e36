"""Owns the bodies and stream events of `/v1/responses`; knows neither the engine nor HTTP."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from mach_decode.logprobs import TokenLogprob
from mach_decode.token_text import TokenTexts
from mach_server.answer.events import (
    Event,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from mach_server.answer_reader import AnswerPart
from mach_server.answer_request import AnswerRequest
from mach_server.collected_answer import Block, CollectedAnswer, Outcome
from mach_server.errors import ApiError
from mach_server.event_stream import named_event
from mach_server.responses_items import (
    IncompleteDetails,
    Item,
    ReasoningPart,
    ResponseObject,
    ResponseUsage,
    Status,
    TextPart,
    item_of,
    new_id,
)
from mach_server.responses_request import ResponseRequest
from mach_server.token_logprobs import TokenEntry, token_entries


class ResponseWriter:
    """Writes one answer, whole or in events with sequence numbers.

    In a stream, what began as a call and was none stays an item, with the status `incomplete`: it cannot be
    taken back. A whole answer has its text instead.
    """

    def __init__(self, body: ResponseRequest, request: AnswerRequest, model: str, texts: TokenTexts) -> None:
        """Args: body: what was asked for, of which answers tell a part; request: the same, translated."""
        self._texts, self._logprobs = texts, body.wants_logprobs
        self._sequence = 0
        self._items: list[Item] = []
        self._open: Block | None = None
        self._open_id = ""
        self._untold: list[TokenLogprob] = []
        self._entries: list[TokenEntry] = []
        tools = [_tool(tool) for tool in body.tools or ()]
        self._response = ResponseObject(
            id=new_id("response"),
            created_at=int(time.time()),
            status="in_progress",
            model=model,
            output=[],
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            metadata=body.metadata or {},
            parallel_tool_calls=body.parallel_tool_calls is not False,
            reasoning={"effort": request.effort, "summary": None},
            temperature=request.sampling.temperature,
            top_p=request.sampling.top_p,
            text={"format": (body.text.format if body.text else None) or {"type": "text"}},
            tool_choice="auto" if body.tool_choice is None else body.tool_choice,
            tools=tools,
            top_logprobs=body.top_logprobs or 0,
        )

    def whole(self, answer: CollectedAnswer, outcome: Outcome) -> bytes:
        """The body of an answer that was not streamed."""
        entries = token_entries(answer.logprobs, self._texts)
        texts = [block for block in answer.blocks if block.kind == "text"]
        for block in answer.blocks:
            last = block is answer.blocks[-1]
            status: Status = "incomplete" if last and outcome.reason == "length" else "completed"
            told = entries if texts and block is texts[0] else None
            self._items.append(item_of(block, new_id(block.kind), status, told))
        self._finish(outcome)
        return msgspec.json.encode(self._response)

    def begin(self, prompt_tokens: int) -> bytes:
        """The response as it begins."""
        return self._whole_event("response.created") + self._whole_event("response.in_progress")

    def part(self, part: AnswerPart) -> bytes:
        """The events for what has come."""
        self._untold += part.logprobs
        return b"".join(self._on(event) for event in part.events)

    def end(self, outcome: Outcome) -> bytes:
        """The end of the open item, and the whole response."""
        cut = outcome.reason == "length"
        events = self._close("incomplete" if cut else "completed")
        self._finish(outcome)
        return events + self._whole_event("response.incomplete" if cut else "response.completed")

    def failed(self, error: ApiError) -> bytes:
        """The error event."""
        return self._event(
            "error", {"code": error.code or error.type, "message": str(error), "param": error.param}
        )

    def _on(self, event: Event) -> bytes:
        match event:
            case TextDelta(text):
                told = token_entries(self._untold, self._texts) if self._logprobs else []
                self._untold = []
                opened = self._ensure("text")
                self._entries += told
                return opened + self._delta("response.output_text.delta", text, logprobs=told)
            case ReasoningDelta(text):
                return self._ensure("reasoning") + self._delta("response.reasoning_text.delta", text)
            case ToolCallStart(_, id, name):
                return self._close("completed") + self._begin(Block("call", id, name))
            case ToolCallArguments(_, fragment):
                return self._delta("response.function_call_arguments.delta", fragment)
            case ToolCallEnd(_, complete, _):
                return self._close("completed" if complete else "incomplete")
        return b""

    def _ensure(self, kind: str) -> bytes:
        """Begin an item of this kind, unless one is open."""
        if self._open is not None and self._open.kind == kind:
            return b""
        return self._close("completed") + self._begin(Block("text" if kind == "text" else "reasoning"))

    def _begin(self, block: Block) -> bytes:
        self._open, self._open_id, self._entries = block, new_id(block.kind), []
        item: Any = item_of(block, self._open_id, "in_progress")
        if block.kind != "call":
            item.content = []
        added = self._event("response.output_item.added", {"output_index": len(self._items), "item": item})
        if block.kind == "call":
            return added
        return added + self._event("response.content_part.added", {**self._place(), "part": self._part()})

    def _delta(self, name: str, text: str, **more: Any) -> bytes:
        assert self._open is not None, "a delta belongs to an item"
        self._open.add(text)
        place = self._place()
        if self._open.kind == "call":
            del place["content_index"]
        return self._event(name, {**place, "delta": text, **more})

    def _close(self, status: Status) -> bytes:
        """End the open item, if there is one."""
        if self._open is None:
            return b""
        block, place = self._open, self._place()
        item = item_of(block, self._open_id, status, self._entries)
        if block.kind == "call":
            del place["content_index"]
            done = {**place, "name": block.name, "arguments": block.text}
            events = self._event("response.function_call_arguments.done", done)
        else:
            texts: dict[str, Any] = {"text": block.text}
            if block.kind == "text":
                texts["logprobs"] = self._entries
            name = "output_text" if block.kind == "text" else "reasoning_text"
            events = self._event(f"response.{name}.done", {**place, **texts})
            events += self._event("response.content_part.done", {**place, "part": self._part()})
        events += self._event("response.output_item.done", {"output_index": len(self._items), "item": item})
        self._items.append(item)
        self._open = None
        return events

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._open_id, "output_index": len(self._items), "content_index": 0}

    def _part(self) -> ReasoningPart | TextPart:
        assert self._open is not None, "a part belongs to an item"
        if self._open.kind == "reasoning":
            return ReasoningPart(text=self._open.text)
        return TextPart(text=self._open.text, logprobs=self._entries)

    def _finish(self, outcome: Outcome) -> None:
        cut = outcome.reason == "length"
        self._response.status = "incomplete" if cut else "completed"
        self._response.incomplete_details = IncompleteDetails() if cut else None
        self._response.completed_at = None if cut else int(time.time())
        self._response.output = self._items
        self._response.usage = ResponseUsage.of(outcome)

    def _whole_event(self, name: str) -> bytes:
        return self._event(name, {"response": self._response})

    def _event(self, name: str, fields: dict[str, Any]) -> bytes:
        payload = {"type": name, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return named_event(name, msgspec.json.encode(payload))


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as answers tell it, which has all its fields."""
    return {"description": None, "parameters": None, "strict": False, **tool}
