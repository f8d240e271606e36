import json
from typing import Any

import pytest

from mach_decode.errors import SamplingError
from mach_server.answer_request import AnswerRequest
from mach_server.chat_request import parse_chat_request
from mach_server.errors import ApiError, BadRequestError, ModelNotFoundError
from mach_server.limits import Limits
from mach_server.sampling_fields import DEFAULT_TEMPERATURE

MODELS = frozenset({"m"})


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def parsed(**fields: Any) -> AnswerRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return parse_chat_request(json.dumps(body).encode()).answer_request(MODELS, Limits())


def refusal(**fields: Any) -> ApiError:
    with pytest.raises((ApiError, SamplingError)) as caught:
        parsed(**fields)
    if isinstance(caught.value, SamplingError):
        return BadRequestError(str(caught.value), param=caught.value.parameter)
    return caught.value


def test_defaults_are_those_of_openai() -> None:
    chat = parsed()
    sampling = chat.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (DEFAULT_TEMPERATURE, 1.0, 0)
    assert DEFAULT_TEMPERATURE == 1.0
    assert (chat.max_tokens, chat.logprobs, chat.output, chat.effort) == (None, None, None, None)
    assert (chat.tools.mode, chat.tools.tools, chat.tools.parallel) == ("auto", (), True)


def test_without_a_seed_answers_differ_and_with_one_they_do_not() -> None:
    assert parsed().sampling.seed != parsed().sampling.seed
    assert parsed(seed=5).sampling == parsed(seed=5).sampling


def test_max_completion_tokens_wins_over_max_tokens() -> None:
    assert parsed(max_tokens=3, max_completion_tokens=7).max_tokens == 7
    assert parsed(max_tokens=3).max_tokens == 3


def test_a_stop_string_may_stand_alone_or_in_a_list() -> None:
    assert parsed(stop="x").stop == ("x",)
    assert parsed(stop=["x", "y"]).stop == ("x", "y")


def test_text_parts_are_joined_and_developers_speak_as_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = parsed(messages=[{"role": "developer", "content": parts, "name": "n"}])
    assert chat.messages == ({"role": "system", "content": "a\nb", "name": "n"},)


def test_penalties_biases_and_logprobs_reach_the_engine() -> None:
    chat = parsed(
        frequency_penalty=0.5, presence_penalty=-0.5, logit_bias={"5": -100, "7": 2.5}, logprobs=True
    )
    sampling = chat.sampling
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.5, -0.5)
    assert sampling.logit_bias == ((5, -100.0), (7, 2.5))
    assert chat.logprobs == 0
    assert parsed(logprobs=True, top_logprobs=5).logprobs == 5
    assert parsed(logprobs=False, top_logprobs=0).logprobs is None


def test_calls_and_their_results_become_what_templates_expect() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1, 2]}'}}
    messages = parsed(
        messages=[
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "hm"},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "out"}]},
        ]
    ).messages
    assert messages == (
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": [{**call, "function": {"name": "f", "arguments": {"x": [1, 2]}}}],
        },
        {"role": "tool", "content": "out", "tool_call_id": "c1"},
    )


def test_tools_and_choices_are_understood() -> None:
    rules = parsed(tools=[TOOL], tool_choice="required", parallel_tool_calls=False).tools
    assert (rules.mode, rules.parallel, rules.forced) == ("required", False, True)
    assert rules.shown[0].for_template() == TOOL
    named = parsed(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "f"}}).tools
    assert (named.mode, named.name, named.parallel) == ("named", "f", False)
    assert parsed(tools=[TOOL], tool_choice="none").tools.shown == ()
    bare = parsed(tools=[{"type": "function", "function": {"name": "g"}}]).tools.tools[0]
    assert bare.parameters == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("fields", "kind", "value"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", None),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"a": 1}}}},
            "json_schema",
            {"a": 1},
        ),
        ({"guided_json": '{"a": 1}'}, "json_schema", {"a": 1}),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_choice": ["a", "b"]}, "choice", ("a", "b")),
        ({"structured_outputs": {"grammar": "g"}}, "grammar", "g"),
        ({"structured_outputs": {"json_object": True}}, "json_object", None),
        ({"structured_outputs": {"choice": ["a"]}, "response_format": {"type": "text"}}, "choice", ("a",)),
    ],
)
def test_forms_of_the_output_become_one_rule(fields: dict[str, Any], kind: str, value: Any) -> None:
    rule = parsed(**fields).output
    assert rule is not None
    assert (rule.kind, rule.value) == (kind, value)


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
        {"parallel_tool_calls": True, "safety_identifier": "s", "prompt_cache_key": "k"},
        {"tools": [], "tool_choice": "auto", "n": 1, "logprobs": False, "logit_bias": {}},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "response_format": {"type": "text"}},
        {"stop": None, "seed": None, "temperature": None, "tools": None, "max_tokens": None},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
        {"messages": [{"role": "assistant", "content": "a", "refusal": None, "tool_calls": None}]},
    ],
)
def test_harmless_and_neutral_fields_are_accepted(fields: dict[str, Any]) -> None:
    parsed(**fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "absent"}}),
        ("functions", [{"name": "f"}]),
        ("top_logprobs", 2),
        ("top_logprobs", 21),
        ("n", 2),
        ("n", True),
        ("logit_bias", {"x": 2}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"1": 1, "01": 1}),
        ("logit_bias", {str(token): 1 for token in range(2000)}),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("store", True),
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
        ({"role": "function", "content": "x"}, "messages[0].role"),
        ({"role": "tool", "content": "x"}, "messages[0].tool_call_id"),
        ({"role": "user", "content": "x", "tool_call_id": "c"}, "messages[0].tool_call_id"),
        ({"role": "assistant", "content": None}, "messages[0].content"),
        ({"role": "assistant"}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "messages[0].content[0].type",
        ),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url", "text": "x"}]}, "messages[0].content[0].type"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "messages[0].tool_calls[0].id"),
    ],
)
def test_a_bad_message_is_named_by_its_place(message: dict[str, Any], param: str) -> None:
    assert refusal(messages=[message]).param == param


@pytest.mark.parametrize("arguments", ["{", "[]", '"x"', "1", '{"a": NaN}', "[" * 5000])
def test_arguments_of_an_earlier_call_must_be_an_object(arguments: str) -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": arguments}}
    error = refusal(messages=[{"role": "assistant", "tool_calls": [call]}])
    assert error.param == "messages[0].tool_calls[0].function.arguments"


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([{"type": "custom", "custom": {"name": "f"}}], "tools[0].type"),
        ([{"type": "function"}], "tools[0].function"),
        ([TOOL, TOOL], "tools[1].function.name"),
        ([{"type": "function", "function": {"name": "a b"}}], "tools[0].function.name"),
        ([{"type": "function", "function": {"name": "f", "parameters": 5}}], "tools[0].function.parameters"),
        ([{**TOOL, "function": {"name": f"f{n}"}} for n in range(200)], "tools"),
    ],
)
def test_a_bad_tool_is_named(tools: list[Any], param: str) -> None:
    assert refusal(tools=tools).param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": 5}}, "response_format.json_schema"),
        ({"response_format": {"type": "text", "x": 1}}, "response_format.x"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_regex"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
        ({"structured_outputs": {"xml": "a"}}, "structured_outputs.xml"),
    ],
)
def test_a_form_that_cannot_be_is_named(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields).param == param


def test_an_unknown_model_is_not_found() -> None:
    error = refusal(model="other")
    assert isinstance(error, ModelNotFoundError)
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")


def test_who_asks_for_several_answers_is_told_how_to_get_them() -> None:
    with pytest.raises(ApiError, match="n is not supported by this server; .* ask once for each answer"):
        parsed(n=2)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b'{"model": "\xff\xfe"}', b'{"a":' + b"[" * 10_000, b'{"n": NaN}']
)
def test_what_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequestError):
        parse_chat_request(body)


def test_deep_nesting_is_refused_and_not_a_crash() -> None:
    with pytest.raises(BadRequestError, match="deep"):
        parse_chat_request(b'{"model":"m","metadata":' + b"[" * 10_000 + b"]" * 10_000 + b"}")
