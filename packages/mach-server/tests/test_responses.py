"""`/v1/responses` over a real socket, and what its bodies mean."""

import json
from typing import Any

import pytest

from mach_server.answer.events import (
    Event,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from mach_server.answer_reader import AnswerPart
from mach_server.collected_answer import CollectedAnswer, Outcome
from mach_server.errors import ApiError, GenerationError
from mach_server.limits import Limits
from mach_server.responses_request import parse_response_request
from mach_server.responses_response import ResponseWriter

TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}
EVENTS: list[Event] = [
    ReasoningDelta("h"),
    ReasoningDelta("m"),
    TextDelta("a"),
    TextDelta("b"),
    ToolCallStart(0, "c0", "f"),
    ToolCallArguments(0, '{"x"'),
    ToolCallArguments(0, ": 1}"),
    ToolCallEnd(0),
    ToolCallStart(1, "c1", "g"),
    ToolCallEnd(1),
]


def request_of(**fields: Any):
    body = json.dumps({"model": "m", "input": "hi", **fields}).encode()
    asked = parse_response_request(body)
    return asked, asked.answer_request(frozenset({"m"}), Limits())


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        request_of(**fields)
    return caught.value


def writer() -> ResponseWriter:
    return ResponseWriter(*request_of(), "m", None)  # type: ignore[arg-type]


def outcome(reason: str = "stop") -> Outcome:
    return Outcome(reason=reason, stop=None, prompt_tokens=3, completion_tokens=2, reasoning_tokens=1)  # type: ignore[arg-type]


def parsed(events: bytes) -> list[dict[str, Any]]:
    found = []
    for event in events.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def streamed(events: list[Event], reason: str = "stop") -> list[dict[str, Any]]:
    made = writer()
    sent = made.begin(3)
    for event in events:
        sent += made.part(AnswerPart([event], (), ()))
    return parsed(sent + made.end(outcome(reason)))


def without_ids(value: Any) -> Any:
    if isinstance(value, list):
        return [without_ids(item) for item in value]
    if isinstance(value, dict):
        return {name: without_ids(item) for name, item in value.items() if name not in ("id", "completed_at")}
    return value


def test_a_stream_s_last_event_holds_the_whole_answer() -> None:
    answer = CollectedAnswer()
    answer.add(EVENTS)
    for reason, last in (("stop", "response.completed"), ("length", "response.incomplete")):
        events = streamed(EVENTS, reason)
        whole = json.loads(writer().whole(answer, outcome(reason)))
        assert events[-1]["type"] == last
        assert without_ids(events[-1]["response"]["usage"]) == without_ids(whole["usage"])
        if reason == "stop":
            assert without_ids(events[-1]["response"]) == without_ids(whole)


def test_events_are_numbered_and_come_in_openai_s_order() -> None:
    events = streamed(EVENTS)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert [event["output_index"] for event in events if "item" in event] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_items_begin_empty_and_end_whole() -> None:
    events = streamed(EVENTS)
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [item["status"] for item in added] == ["in_progress"] * 4
    assert added[1]["content"] == [] and added[2]["arguments"] == ""
    assert [item["status"] for item in done] == ["completed"] * 4
    assert done == events[-1]["response"]["output"]
    assert [item["id"] for item in added] == [item["id"] for item in done]
    assert done[2]["arguments"] == '{"x": 1}' and done[2]["call_id"] == "c0"


def test_a_call_that_breaks_off_stays_an_incomplete_item_of_the_stream() -> None:
    broken: list[Event] = [ToolCallStart(0, "c0", "f"), ToolCallEnd(0, False, "<raw>"), TextDelta("!")]
    output = streamed(broken)[-1]["response"]["output"]
    assert [item["status"] for item in output] == ["incomplete", "completed"]


def test_a_failure_is_an_error_event() -> None:
    made = writer()
    made.begin(3)
    (event,) = parsed(made.failed(GenerationError("no", code="generation_failed")))
    assert event == {
        "type": "error",
        "sequence_number": 2,
        "code": "generation_failed",
        "message": "no",
        "param": None,
    }


def test_items_become_one_conversation() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"x": 1}'}
    items = [
        {"role": "developer", "content": "rules"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "q"}]},
        {
            "type": "reasoning",
            "id": "rs",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "hm"}],
        },
        {
            "type": "message",
            "id": "msg",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "wait", "annotations": [], "logprobs": []}],
        },
        call,
        {**call, "call_id": "d"},
        {"type": "function_call_output", "call_id": "c", "output": "1"},
        {"type": "function_call_output", "call_id": "d", "output": [{"type": "input_text", "text": "2"}]},
        {"role": "assistant", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]
    calls = [
        {"id": name, "type": "function", "function": {"name": "f", "arguments": {"x": 1}}} for name in "cd"
    ]
    assert request_of(input=items, instructions="be")[1].messages == (
        {"role": "system", "content": "be"},
        {"role": "system", "content": "rules"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "wait", "reasoning_content": "hm", "tool_calls": calls},
        {"role": "tool", "content": "1", "tool_call_id": "c"},
        {"role": "tool", "content": "2", "tool_call_id": "d"},
        {"role": "assistant", "content": "three"},
        {"role": "assistant", "content": "four"},
    )


def test_a_plain_string_is_the_user_s() -> None:
    assert request_of(input="hello")[1].messages == ({"role": "user", "content": "hello"},)


@pytest.mark.parametrize(
    "fields",
    [
        {"store": False, "background": False, "truncation": "disabled", "previous_response_id": None},
        {"include": ["reasoning.encrypted_content"], "reasoning": {"summary": "auto"}},
        {"text": {"format": {"type": "text"}, "verbosity": "medium"}, "metadata": {"a": "b"}},
        {"service_tier": "auto", "prompt_cache_key": "k", "safety_identifier": "s", "user": "u"},
        {"stream": True, "stream_options": {"include_obfuscation": False}},
        {
            "tools": [{**TOOL, "strict": True, "description": "d"}],
            "tool_choice": {"type": "function", "name": "f"},
        },
    ],
)
def test_what_agents_send_by_default_is_accepted(fields: dict[str, Any]) -> None:
    request_of(**fields)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 30}, "top_logprobs"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].arguments"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"type": "reasoning", "encrypted_content": "x"}]}, "input[0].encrypted_content"),
        ({"no_such_field": 1}, "no_such_field"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert (error.status, error.param) == (400, param)


def test_the_endpoint_answers_as_chat_does(server) -> None:
    fields = {"temperature": 0, "chat_template_kwargs": {"enable_thinking": False}}
    body = {"model": "mach-pico", "input": "def reverse(s):", "max_output_tokens": 12, **fields}
    whole = server.client.post("/responses", json=body).json()
    assert whole["output"][0]["content"][0]["text"] == server.text(max_tokens=12, **fields)
    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    events = parsed(server.client.post("/responses", json={**body, "stream": True}).content)
    assert events[-1]["type"] == "response.incomplete"
    assert without_ids(events[-1]["response"]["output"]) == without_ids(whole["output"])


def test_logprobs_come_with_the_text(server) -> None:
    body = {
        "model": "mach-pico",
        "input": "def reverse(s):",
        "max_output_tokens": 5,
        "temperature": 0,
        "top_logprobs": 2,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    part = server.client.post("/responses", json=body).json()["output"][0]["content"][0]
    assert "".join(entry["token"] for entry in part["logprobs"]) == part["text"]
    assert {len(entry["top_logprobs"]) for entry in part["logprobs"]} == {2}
    events = parsed(server.client.post("/responses", json={**body, "stream": True}).content)
    told = [entry for event in events if event["type"].endswith("text.delta") for entry in event["logprobs"]]
    assert told == part["logprobs"]
