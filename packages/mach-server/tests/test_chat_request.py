import json
from typing import Any

import pytest

from mach_decode.errors import SamplingError
from mach_server.chat_request import DEFAULT_TEMPERATURE, ChatRequest, parse_chat_request
from mach_server.errors import ApiError, BadRequestError, ModelNotFoundError
from mach_server.limits import Limits

MODELS = frozenset({"m"})


def parsed(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return parse_chat_request(json.dumps(body).encode())


def refusal(**fields: Any) -> ApiError:
    with pytest.raises((ApiError, SamplingError)) as caught:
        parsed(**fields).check(MODELS, Limits())
    if isinstance(caught.value, SamplingError):
        return BadRequestError(str(caught.value), param=caught.value.parameter)
    return caught.value


def test_defaults_are_those_of_openai() -> None:
    chat = parsed()
    chat.check(MODELS, Limits())
    sampling = chat.sampling()
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (DEFAULT_TEMPERATURE, 1.0, 0)
    assert DEFAULT_TEMPERATURE == 1.0
    assert chat.generation((1,)).max_tokens is None


def test_without_a_seed_answers_differ_and_with_one_they_do_not() -> None:
    assert parsed().sampling().seed != parsed().sampling().seed
    assert parsed(seed=5).sampling() == parsed(seed=5).sampling()


def test_max_completion_tokens_wins_over_max_tokens() -> None:
    assert parsed(max_tokens=3, max_completion_tokens=7).generation((1,)).max_tokens == 7
    assert parsed(max_tokens=3).generation((1,)).max_tokens == 3


def test_a_stop_string_may_stand_alone_or_in_a_list() -> None:
    assert parsed(stop="x").generation((1,)).stop == ("x",)
    assert parsed(stop=["x", "y"]).generation((1,)).stop == ("x", "y")


def test_text_parts_are_joined_and_developers_speak_as_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = parsed(messages=[{"role": "developer", "content": parts, "name": "n"}])
    assert chat.template_messages() == [{"role": "system", "content": "a\nb", "name": "n"}]


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"},
        {"parallel_tool_calls": True, "safety_identifier": "s", "prompt_cache_key": "k"},
        {"tools": [], "tool_choice": "auto", "n": 1, "logprobs": False, "logit_bias": {}},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "response_format": {"type": "text"}},
        {"stop": None, "seed": None, "temperature": None, "tools": None, "max_tokens": None},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
        {"messages": [{"role": "assistant", "content": "a", "refusal": None, "tool_calls": None}]},
    ],
)
def test_harmless_and_neutral_fields_are_accepted(fields: dict[str, Any]) -> None:
    parsed(**fields).check(MODELS, Limits())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("response_format", {"type": "json_object"}),
        ("logprobs", True),
        ("top_logprobs", 2),
        ("n", 2),
        ("logit_bias", {"1": 2}),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -0.5),
        ("reasoning_effort", "low"),
        ("modalities", ["text", "audio"]),
        ("no_such_field", 1),
        ("temperature", 2.5),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_k", -3),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("seed", 1.5),
        ("stream", "yes"),
        ("stop", ["a", "b", "c", "d", "e"]),
        ("stop", ""),
        ("max_tokens", 0),
        ("max_completion_tokens", -1),
        ("messages", []),
        ("messages", "hi"),
        ("chat_template_kwargs", {"chat_template": "{{ 1 }}"}),
        ("stream_options", {"include_usage": True}),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(field: str, value: Any) -> None:
    error = refusal(**{field: value})
    assert error.status == 400
    assert error.type == "invalid_request_error"
    assert error.param == field


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "messages[0].role"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url", "text": "x"}]}, "messages[0].content[0].type"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "messages[0].tool_calls"),
    ],
)
def test_a_bad_message_is_named_by_its_place(message: dict[str, Any], param: str) -> None:
    assert refusal(messages=[message]).param == param


def test_an_unknown_model_is_not_found() -> None:
    error = refusal(model="other")
    assert isinstance(error, ModelNotFoundError)
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b'{"model": "\xff\xfe"}', b'{"a":' + b"[" * 10_000, b'{"n": NaN}']
)
def test_what_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequestError):
        parse_chat_request(body)


def test_deep_nesting_is_refused_and_not_a_crash() -> None:
    with pytest.raises(BadRequestError, match="deep"):
        parse_chat_request(b'{"model":"m","metadata":' + b"[" * 10_000 + b"]" * 10_000 + b"}")
