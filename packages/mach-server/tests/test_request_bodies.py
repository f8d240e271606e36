"""Whatever a client sends: an answer, or an error object with a status below 500; never a crash."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mach.errors import MachError
from mach_server.answer_request import AnswerRequest
from mach_server.chat_request import ChatRequest, parse_chat_request
from mach_server.completions_request import CompletionRequest, parse_completion_request
from mach_server.errors import api_error_of
from mach_server.limits import Limits
from mach_server.messages_request import MessagesRequest, parse_messages_request
from mach_server.responses_request import ResponseRequest, parse_response_request

USER = {"role": "user", "content": "hi"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
PARTS = [
    {"type": "text", "text": "a"},
    {"type": "input_text", "text": "a"},
    {"type": "image_url", "image_url": {"url": "u"}},
    {"type": "tool_result", "tool_use_id": "c", "content": "x"},
    {"type": "tool_use", "id": "c", "name": "f", "input": {}},
    {"type": "thinking", "thinking": "t", "signature": "s"},
    {"type": "refusal", "refusal": "no"},
]
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}

NUMBERS = st.one_of(
    st.integers(-(1 << 70), 1 << 70), st.floats(allow_nan=False, allow_infinity=False), st.integers(-3, 25)
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8))
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
CONTENT = st.one_of(st.text(max_size=8), st.lists(st.one_of(st.sampled_from(PARTS), JSON), max_size=3), JSON)
ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool", "function", ""])
MESSAGE = st.one_of(
    st.just(USER),
    st.fixed_dictionaries(
        {"role": ROLES},
        optional={
            "content": CONTENT,
            "tool_calls": st.one_of(st.just([CALL]), JSON),
            "tool_call_id": st.one_of(st.just("c"), JSON),
            "reasoning": JSON,
        },
    ),
    JSON,
)
ITEM = st.one_of(
    MESSAGE,
    st.fixed_dictionaries(
        {"type": st.sampled_from(["message", "reasoning", "function_call", "function_call_output", "x"])},
        optional={
            "content": CONTENT,
            "role": ROLES,
            "call_id": st.text(max_size=4),
            "name": st.text(max_size=4),
            "arguments": st.sampled_from(["{}", "[", "5"]),
            "output": CONTENT,
            "summary": JSON,
        },
    ),
)
TOOL = st.sampled_from(
    [
        {"type": "function", "function": {"name": "f", "parameters": SCHEMA}},
        {"type": "function", "name": "f", "parameters": SCHEMA},
        {"name": "f", "input_schema": SCHEMA},
        {"type": "web_search"},
        {"type": "function", "function": {"name": ""}},
    ]
)
FIELDS = {
    "messages": st.one_of(st.lists(MESSAGE, max_size=3), JSON),
    "input": st.one_of(st.text(max_size=5), st.lists(ITEM, max_size=3), JSON),
    "prompt": st.one_of(st.text(max_size=5), st.lists(NUMBERS, max_size=3), JSON),
    "tools": st.one_of(st.lists(st.one_of(TOOL, JSON), max_size=3), JSON),
    "tool_choice": st.one_of(
        st.sampled_from(["auto", "none", "required", {"type": "any"}, {"type": "function", "name": "f"}]),
        JSON,
    ),
    "response_format": st.one_of(
        st.sampled_from(
            [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"schema": SCHEMA}}]
        ),
        JSON,
    ),
    "logit_bias": st.dictionaries(
        st.one_of(st.text(max_size=4), st.from_regex(r"\d{1,12}")), NUMBERS, max_size=3
    ),
    "stop": st.one_of(st.text(max_size=3), st.lists(st.text(max_size=3), max_size=6), JSON),
}
BASE: dict[type, dict[str, Any]] = {
    ChatRequest: {"model": "m", "messages": [USER]},
    CompletionRequest: {"model": "m", "prompt": "x"},
    ResponseRequest: {"model": "m", "input": "x"},
    MessagesRequest: {"model": "m", "messages": [USER], "max_tokens": 5},
}
PARSERS: dict[type, Callable[[bytes], Any]] = {
    ChatRequest: parse_chat_request,
    CompletionRequest: parse_completion_request,
    ResponseRequest: parse_response_request,
    MessagesRequest: parse_messages_request,
}
KINDS = pytest.mark.parametrize("kind", PARSERS, ids=lambda kind: kind.__name__)


def understood(kind: type, body: bytes) -> AnswerRequest | None:
    """The request, or None after an error with a status below 500 and a body of OpenAI's form."""
    try:
        return PARSERS[kind](body).answer_request(frozenset({"m"}), Limits())
    except MachError as error:
        told = api_error_of(error)
        assert 400 <= told.status < 500
        detail = json.loads(told.body())["error"]
        assert detail["message"] and set(detail) == {"message", "type", "param", "code"}
        return None


def bodies(kind: type) -> st.SearchStrategy[dict[str, Any]]:
    """Bodies that are mostly right: a few fields of this endpoint, or unknown ones, have odd values."""
    fields = {name: FIELDS.get(name, JSON) for name in kind.__struct_fields__ if name != "model"}  # type: ignore[attr-defined]
    changed = st.lists(st.sampled_from(sorted(fields)), max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: fields[name] for name in names})
    )
    unknown = st.dictionaries(st.text(max_size=6), JSON, max_size=1)
    return st.builds(
        lambda given, more: {**BASE[kind], **more, **given}, changed, st.one_of(st.just({}), unknown)
    )


@KINDS
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_odd_bodies_are_understood_or_refused(kind: type, data: st.DataObject) -> None:
    body = data.draw(bodies(kind))
    request = understood(kind, json.dumps(body).encode())
    if request is None:
        return
    assert request.messages or request.prompt
    assert request.max_tokens is None or request.max_tokens >= 0
    known = set(kind.__struct_fields__)  # type: ignore[attr-defined]
    assert set(body) <= known, "an unknown field was ignored"


@KINDS
@settings(max_examples=100, deadline=None)
@given(body=st.binary(max_size=60))
@example(body=b"")
@example(body=b"null")
@example(body=b"\xff\xfe")
@example(body=b'{"model": "m", "seed": NaN}')
@example(body=b'{"model": "m", "seed": 1e999}')
@example(body=b'{"model": "m", "seed": 1' + b"0" * 5000 + b"}")
@example(body=b'{"model": "\\ud800"}')
def test_any_bytes_are_refused_and_no_crash(kind: type, body: bytes) -> None:
    assert understood(kind, body) is None


@KINDS
@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize(
    "field", ["metadata", "tools", "messages", "input", "prompt", "response_format", "stop"]
)
def test_deep_nesting_is_refused_and_no_crash(kind: type, opening: str, field: str) -> None:
    closing = "]" if opening == "[" else "}"
    for depth in (100, 1000, 10_000):
        nested = opening * depth + "1" + closing * depth
        text = json.dumps(BASE[kind])[:-1] + f', "{field}": {nested}}}'
        request = understood(kind, text.encode())
        assert request is None or (depth == 100 and field == "metadata")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@KINDS
def test_numbers_that_json_does_not_have_are_refused(kind: type, number: float) -> None:
    assert understood(kind, json.dumps({**BASE[kind], "temperature": number}).encode()) is None


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_server_answers_every_body_below_500(server, data: st.DataObject) -> None:
    kind, path = data.draw(
        st.sampled_from(
            [
                (ChatRequest, "/chat/completions"),
                (CompletionRequest, "/completions"),
                (ResponseRequest, "/responses"),
                (MessagesRequest, "/messages"),
                (MessagesRequest, "/messages/count_tokens"),
            ]
        )
    )
    body = {**data.draw(bodies(kind)), "model": "mach-pico"}
    if kind is ResponseRequest:
        body["max_output_tokens"] = 1
    elif not path.endswith("count_tokens"):
        body["max_tokens"] = 1
        body.pop("max_completion_tokens", None)
    answer = server.client.post(path, json=body)
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]
