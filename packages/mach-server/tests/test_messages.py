"""Anthropic's `/v1/messages` over a real socket, and what its bodies mean."""

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
from mach_server.messages_request import parse_messages_request
from mach_server.messages_response import MessagesWriter

TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
EVENTS: list[Event] = [
    ReasoningDelta("h"),
    ReasoningDelta("m"),
    TextDelta("ab"),
    ToolCallStart(0, "c0", "f"),
    ToolCallArguments(0, '{"x"'),
    ToolCallArguments(0, ": 1}"),
    ToolCallEnd(0),
    ToolCallStart(1, "c1", "g"),
    ToolCallArguments(1, "{}"),
    ToolCallEnd(1),
]


def request_of(**fields: Any):
    body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}], **fields}
    return parse_messages_request(json.dumps(body).encode()).answer_request(frozenset({"m"}), Limits())


def outcome(reason: str = "stop", stop: str | None = None) -> Outcome:
    return Outcome(reason=reason, stop=stop, prompt_tokens=3, completion_tokens=2, reasoning_tokens=1)  # type: ignore[arg-type]


def parsed(events: bytes) -> list[dict[str, Any]]:
    found = []
    for event in events.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def streamed(events: list[Event]) -> list[dict[str, Any]]:
    writer = MessagesWriter("m")
    sent = writer.begin(3)
    for event in events:
        sent += writer.part(AnswerPart([event], (), ()))
    return parsed(sent + writer.end(outcome("tool_calls")))


def test_a_whole_answer_has_a_block_for_each_part() -> None:
    answer = CollectedAnswer()
    answer.add(EVENTS)
    body = json.loads(MessagesWriter("m").whole(answer, outcome("tool_calls")))
    assert body["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "ab"},
        {"type": "tool_use", "id": "c0", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": "c1", "name": "g", "input": {}},
    ]
    assert (body["type"], body["role"], body["stop_reason"]) == ("message", "assistant", "tool_use")
    assert body["usage"]["input_tokens"] == 3 and body["usage"]["output_tokens"] == 2
    assert body["usage"]["output_tokens_details"] == {"thinking_tokens": 1}


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        (outcome(), ("end_turn", None)),
        (outcome("length"), ("max_tokens", None)),
        (outcome("stop", "END"), ("stop_sequence", "END")),
        (outcome("tool_calls"), ("tool_use", None)),
    ],
)
def test_reasons_have_anthropic_s_names(ended: Outcome, reason: tuple[str, str | None]) -> None:
    body = json.loads(MessagesWriter("m").whole(CollectedAnswer(), ended))
    assert (body["stop_reason"], body["stop_sequence"]) == reason


def test_events_come_in_anthropic_s_order() -> None:
    events = streamed(EVENTS)
    assert [event["type"] for event in events] == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    blocks = [event for event in events if event["type"].startswith("content_block")]
    assert [event["index"] for event in blocks] == [0] * 4 + [1] * 3 + [2] * 4 + [3] * 3
    assert events[0]["message"]["usage"]["input_tokens"] == 3
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    assert events[-2]["usage"]["output_tokens"] == 2


def test_a_failure_is_anthropic_s_error_event() -> None:
    (event,) = parsed(MessagesWriter("m").failed(GenerationError("no")))
    assert event == {"type": "error", "error": {"type": "api_error", "message": "no"}}


def test_blocks_become_a_conversation() -> None:
    request = request_of(
        system=[{"type": "text", "text": "be", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": ""},
                    {"type": "text", "text": "wait"},
                    {"type": "tool_use", "id": "c", "name": "f", "input": {"x": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "1"}]},
                    {"type": "tool_result", "tool_use_id": "d", "content": "bad", "is_error": True},
                    {"type": "text", "text": "go on"},
                ],
            },
        ],
    )
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert request.messages == (
        {"role": "system", "content": "be"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "wait", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "1", "tool_call_id": "c"},
        {"role": "tool", "content": "Error: bad", "tool_call_id": "d"},
        {"role": "user", "content": "go on"},
    )


def test_choices_of_tools_are_understood() -> None:
    for choice, mode in (("auto", "auto"), ("any", "required"), ("none", "none")):
        assert request_of(tools=[TOOL], tool_choice={"type": choice}).tools.mode == mode
    rules = request_of(
        tools=[TOOL], tool_choice={"type": "tool", "name": "f", "disable_parallel_tool_use": True}
    ).tools
    assert (rules.mode, rules.name, rules.parallel) == ("named", "f", False)


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({}, None),
        ({"thinking": {"type": "disabled"}}, "none"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "on"),
        ({"thinking": {"type": "adaptive"}}, None),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, "low"),
    ],
)
def test_thinking_becomes_an_effort(fields: dict[str, Any], effort: str | None) -> None:
    assert request_of(**fields).effort == effort


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"user_id": "u"}, "service_tier": "auto", "stream": False, "top_k": 5, "top_p": 0.5},
        {"stop_sequences": ["a"] * 16, "temperature": 1.0, "cache_control": {"type": "ephemeral"}},
        {"tools": [{**TOOL, "type": "custom", "cache_control": {"type": "ephemeral"}}]},
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
    ],
)
def test_what_agents_send_by_default_is_accepted(fields: dict[str, Any]) -> None:
    request_of(**fields)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"stop_sequences": ["a"] * 17}, "stop_sequences"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        ({"tools": [{"name": "web_search", "type": "web_search_20250305"}]}, "tools[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool", "name": "g"}, "tools": [TOOL]}, "tool_choice"),
        ({"mcp_servers": [{"url": "u"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"speed": "fast"}, "speed"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"no_such_field": 1}, "no_such_field"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        request_of(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


BODY = {
    "model": "mach-pico",
    "max_tokens": 12,
    "temperature": 0,
    "thinking": {"type": "disabled"},
    "messages": [{"role": "user", "content": "def reverse(s):"}],
}


def test_the_endpoint_answers_as_chat_does(server, tokens_of) -> None:
    expected = server.text(max_tokens=12, temperature=0, chat_template_kwargs={"enable_thinking": False})
    whole = server.client.post("/messages", json=BODY).json()
    assert whole["content"] == [{"type": "text", "text": expected}]
    assert whole["stop_reason"] == "max_tokens"
    events = parsed(server.client.post("/messages", json={**BODY, "stream": True}).content)
    text = "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta")
    assert text == expected
    assert tokens_of(events[-2]["usage"]) == tokens_of(whole["usage"])


def test_a_stop_sequence_is_named(server) -> None:
    whole = server.client.post("/messages", json=BODY).json()["content"][0]["text"]
    stopped = server.client.post("/messages", json={**BODY, "stop_sequences": [whole[5:8]]}).json()
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", whole[5:8])


def test_tokens_are_counted_without_the_engine(server) -> None:
    body = {name: value for name, value in BODY.items() if name not in ("max_tokens", "temperature")}
    before = server.stats()["requests"]["completed"]
    counted = server.client.post("/messages/count_tokens", json=body)
    used = server.client.post("/messages", json=BODY).json()["usage"]["input_tokens"]
    assert counted.json() == {"input_tokens": used}
    assert server.stats()["requests"]["completed"] == before + 1
    long = {**body, "messages": [{"role": "user", "content": "word " * 5000}]}
    assert server.client.post("/messages/count_tokens", json=long).json()["input_tokens"] > 5000


@pytest.mark.parametrize("path", ["/messages", "/messages/count_tokens"])
@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"{", 400, "invalid_request_error"),
        (json.dumps({**BODY, "model": "other"}).encode(), 404, "not_found_error"),
        (b" " * (9 << 20), 413, "request_too_large"),
    ],
    ids=["json", "model", "large"],
)
def test_errors_have_anthropic_s_form(server, path: str, body: bytes, status: int, kind: str) -> None:
    if path.endswith("tokens") and status == 404:
        body = body.replace(b'"max_tokens": 12, "temperature": 0, ', b"")
    answer = server.client.post(path, content=body)
    assert answer.status_code == status
    assert answer.json()["type"] == "error"
    assert set(answer.json()["error"]) == {"type", "message"}
    assert answer.json()["error"]["type"] == kind


def test_a_wrong_method_on_messages_has_anthropic_s_form_too(server) -> None:
    answer = server.client.get("/messages")
    assert (answer.status_code, answer.json()["error"]["type"]) == (405, "invalid_request_error")
