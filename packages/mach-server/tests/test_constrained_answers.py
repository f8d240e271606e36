"""Tools and structured output over a real socket, on every endpoint that has them."""

import json
import re
from typing import Any

import pytest

WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
TIME = {"name": "get_time", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": TIME}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "size": {"type": "integer"}},
    "required": ["name", "size"],
    "additionalProperties": False,
}
ASK = "What is the weather in Paris?"
OFF = {"chat_template_kwargs": {"enable_thinking": False}}


def message(server, content: str = ASK, **fields: Any) -> dict[str, Any]:
    answer = server.chat(content, **{"max_tokens": 200, "temperature": 0, **fields})
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return {**choice["message"], "finish_reason": choice["finish_reason"]}


def streamed(server, content: str = ASK, **fields: Any) -> dict[str, Any]:
    """The message that the deltas add up to."""
    whole: dict[str, Any] = {"content": "", "reasoning": "", "calls": []}
    for event in server.events(content, **{"max_tokens": 200, "temperature": 0, **fields})[:-1]:
        choice = event["choices"][0]
        delta = choice["delta"]
        whole["content"] += delta.get("content") or ""
        whole["reasoning"] += delta.get("reasoning") or ""
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(whole["calls"])
                whole["calls"].append([call["function"]["name"], ""])
            assert call["index"] == len(whole["calls"]) - 1
            whole["calls"][-1][1] += call["function"].get("arguments", "")
        whole["finish_reason"] = choice["finish_reason"]
    return whole


def calls_of(answer: dict[str, Any]) -> list[list[str]]:
    return [[call["function"]["name"], call["function"]["arguments"]] for call in answer["tool_calls"]]


def test_a_model_that_calls_of_its_own_accord_is_understood(server) -> None:
    answer = message(server, tools=TOOLS)
    assert answer["finish_reason"] == "tool_calls" and answer["content"] is None
    assert calls_of(answer) == [["get_weather", '{"city": "Paris"}']]
    assert answer["reasoning"] == answer["reasoning_content"] != ""
    assert "<tool_call>" not in json.dumps(answer)
    pieces = streamed(server, tools=TOOLS)
    assert (pieces["calls"], pieces["finish_reason"]) == (calls_of(answer), "tool_calls")
    assert (pieces["content"], pieces["reasoning"]) == ("", answer["reasoning"])


def test_a_required_call_is_enforced_however_unlikely(server) -> None:
    fields = {"temperature": 1.5, "seed": 3, "tool_choice": "required", "parallel_tool_calls": False}
    forced = message(server, "Hello!", tools=TOOLS, **fields, **OFF)
    ((name, arguments),) = calls_of(forced)
    assert name in ("get_weather", "get_time") and isinstance(json.loads(arguments), dict)
    assert forced["finish_reason"] == "tool_calls"
    assert streamed(server, "Hello!", tools=TOOLS, **fields, **OFF)["calls"] == [[name, arguments]]


@pytest.mark.parametrize("thinking", [True, False])
def test_a_named_call_is_enforced(server, thinking: bool) -> None:
    choice = {"type": "function", "function": {"name": "get_time"}}
    answer = message(server, tools=TOOLS, tool_choice=choice, **({} if thinking else OFF))
    assert [(name, json.loads(arguments)) for name, arguments in calls_of(answer)] == [("get_time", {})]


def test_with_choice_none_the_tools_are_not_shown_and_not_called(server, tokens_of) -> None:
    plain = server.chat(ASK, max_tokens=8, temperature=0).json()
    none = server.chat(ASK, max_tokens=8, temperature=0, tools=TOOLS, tool_choice="none").json()
    assert none["choices"] == plain["choices"] and tokens_of(none["usage"]) == tokens_of(plain["usage"])


def test_a_conversation_with_calls_and_results_goes_on(server) -> None:
    first = server.chat(ASK, tools=TOOLS, max_tokens=200, temperature=0).json()["choices"][0]["message"]
    messages = [
        {"role": "user", "content": ASK},
        first,
        {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": '{"weather": "sunny"}'},
    ]
    body = {**server.body(tools=TOOLS, max_tokens=40, temperature=0), "messages": messages}
    answer = server.client.post("/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(("temperature", "thinking"), [(0, True), (1.2, False)])
def test_a_schema_is_enforced(server, temperature: float, thinking: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}
    fields = {"temperature": temperature, "seed": 5, **({} if thinking else OFF)}
    answer = message(server, "Name a thing.", response_format=form, **fields)
    assert answer["finish_reason"] == "stop"
    value = json.loads(answer["content"])
    assert set(value) == {"name", "size"} and type(value["size"]) is int
    assert streamed(server, "Name a thing.", response_format=form, **fields)["content"] == answer["content"]


def test_any_object_is_enforced(server) -> None:
    answer = message(server, "x", response_format={"type": "json_object"}, seed=1, max_tokens=400, **OFF)
    if answer["finish_reason"] == "stop":
        assert isinstance(json.loads(answer["content"]), dict)
    else:
        assert answer["content"].startswith("{")


def test_expressions_and_choices_are_enforced(server) -> None:
    pattern = r"[A-Z]{3}-[0-9]{2}"
    for fields in ({"guided_regex": pattern}, {"structured_outputs": {"regex": pattern}}):
        assert re.fullmatch(pattern, message(server, "x", **fields, **OFF)["content"])
    for fields in ({"guided_choice": ["red", "green"]}, {"structured_outputs": {"choice": ["red", "green"]}}):
        assert message(server, "x", **fields, **OFF)["content"] in ("red", "green")


def test_completions_can_be_constrained_too(server) -> None:
    body = {"model": "mach-pico", "prompt": "colour:", "guided_choice": [" red", " green"], "temperature": 0}
    assert server.client.post("/completions", json=body).json()["choices"][0]["text"] in (" red", " green")


def test_requests_are_constrained_each_by_itself(server) -> None:
    free = server.text("import json", max_tokens=12, temperature=0, **OFF)
    message(server, "x", guided_choice=["red"], **OFF)
    assert server.text("import json", max_tokens=12, temperature=0, **OFF) == free


def test_responses_have_tools_and_forms(server) -> None:
    body = {"model": "mach-pico", "input": ASK, "temperature": 0, "max_output_tokens": 200}
    tools = [{"type": "function", **WEATHER}]
    called = server.client.post("/responses", json={**body, "tools": tools, "tool_choice": "required"}).json()
    (call,) = (item for item in called["output"] if item["type"] == "function_call")
    assert (call["name"], json.loads(call["arguments"])["city"]) == ("get_weather", "Paris")
    assert called["status"] == "completed"
    form = {"format": {"type": "json_schema", "name": "thing", "schema": SCHEMA, "strict": True}}
    formed = server.client.post("/responses", json={**body, "text": form}).json()
    text = next(item for item in formed["output"] if item["type"] == "message")["content"][0]["text"]
    assert set(json.loads(text)) == {"name", "size"}


def test_messages_have_tools_and_forms(server) -> None:
    body = {
        "model": "mach-pico",
        "max_tokens": 200,
        "temperature": 0,
        "messages": [{"role": "user", "content": ASK}],
    }
    tool = {"name": "get_weather", "input_schema": WEATHER["parameters"]}
    choice = {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}
    called = server.client.post("/messages", json={**body, "tools": [tool], "tool_choice": choice}).json()
    assert called["stop_reason"] == "tool_use"
    (call,) = (block for block in called["content"] if block["type"] == "tool_use")
    assert (call["name"], call["input"]["city"]) == ("get_weather", "Paris")
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    formed = server.client.post("/messages", json={**body, "output_config": form}).json()
    text = next(block for block in formed["content"] if block["type"] == "text")["text"]
    assert set(json.loads(text)) == {"name", "size"}


BAD_SCHEMA = {
    "type": "object",
    "properties": {"x": {"type": "string", "contentEncoding": "base64"}},
    "not": {},
}


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (
            "/chat/completions",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": BAD_SCHEMA}}},
            "response_format.json_schema.schema",
        ),
        ("/chat/completions", {"guided_regex": "(?=a)b"}, "guided_regex"),
        ("/chat/completions", {"guided_grammar": "root ::= x"}, "guided_grammar"),
        (
            "/chat/completions",
            {
                "tools": [
                    TOOLS[0],
                    {"type": "function", "function": {"name": "g", "parameters": BAD_SCHEMA, "strict": True}},
                ]
            },
            "tools[1].function.parameters",
        ),
        (
            "/chat/completions",
            {"tools": TOOLS, "response_format": {"type": "json_object"}},
            "response_format",
        ),
        (
            "/responses",
            {"tools": [{"type": "function", "name": "g", "parameters": BAD_SCHEMA, "strict": True}]},
            "tools[0].parameters",
        ),
        (
            "/responses",
            {"text": {"format": {"type": "json_schema", "schema": BAD_SCHEMA}}},
            "text.format.schema",
        ),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(
    server, path: str, fields: dict[str, Any], param: str
) -> None:
    body = server.body(**fields)
    if path == "/responses":
        body["input"] = body.pop("messages")[0]["content"]
    answer = server.client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_anthropic_s_tools_are_named_as_they_were_given(server) -> None:
    tool = {"name": "g", "input_schema": BAD_SCHEMA, "strict": True}
    body = {**server.body(max_tokens=5), "tools": [tool]}
    answer = server.client.post("/messages", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
