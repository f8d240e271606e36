"""The official Anthropic client against `mach-serve` as a process of its own, over a real socket."""

from collections.abc import Iterator

import anthropic
import pytest

ASK = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOLS = [
    {
        "name": "get_weather",
        "description": "Weather of a city",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
]
FIELDS = {"model": "mach-pico", "max_tokens": 200, "messages": ASK, "extra_body": {"temperature": 0}}
PLAIN = {**FIELDS, "thinking": {"type": "disabled"}}


@pytest.fixture(scope="module")
def client(served_pico: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=served_pico, api_key="any", max_retries=0, timeout=60) as client:
        yield client


def test_a_message_has_text_and_usage(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**{**PLAIN, "max_tokens": 12}, system="You write Python.")
    assert [block.type for block in message.content] == ["text"]
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 12 and message.usage.cache_read_input_tokens == 0
    bill = message.usage.expert_io  # the client shows what it does not know
    assert bill["hits"] > 0 and bill["misses"] == bill["bytes_read"] == bill["wait_ms"] == 0


def test_a_streamed_message_adds_up_to_the_plain_one(client: anthropic.Anthropic) -> None:
    fields = {**FIELDS, "max_tokens": 40, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    whole = client.messages.create(**fields)
    with client.messages.stream(**fields) as stream:
        bills = [event.usage.expert_io for event in stream if event.type == "message_delta"]
        streamed = stream.get_final_message()
    assert [bill["misses"] for bill in bills] == [0]
    assert [(block.type, block.to_dict()) for block in streamed.content] == [
        (block.type, block.to_dict()) for block in whole.content
    ]
    assert whole.content[0].type == "thinking" and whole.content[0].thinking
    assert streamed.usage.output_tokens == whole.usage.output_tokens


def test_tools_are_used_and_their_results_understood(client: anthropic.Anthropic) -> None:
    for choice in ({"type": "auto"}, {"type": "any", "disable_parallel_tool_use": True}):
        first = client.messages.create(**PLAIN, tools=TOOLS, tool_choice=choice)
        assert first.stop_reason == "tool_use"
        call = first.content[-1]
        assert (call.type, call.name) == ("tool_use", "get_weather")
        assert isinstance(call.input["city"], str)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    messages = [
        *ASK,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    second = client.messages.create(**{**PLAIN, "messages": messages}, tools=TOOLS)
    assert second.content


def test_a_streamed_call_s_input_is_whole(client: anthropic.Anthropic) -> None:
    choice = {"type": "tool", "name": "get_weather"}
    with client.messages.stream(**PLAIN, tools=TOOLS, tool_choice=choice) as stream:
        message = stream.get_final_message()
    assert isinstance(message.content[-1].input["city"], str)


def test_tokens_are_counted(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="mach-pico", messages=ASK, tools=TOOLS)
    used = client.messages.create(**{**FIELDS, "max_tokens": 1}, tools=TOOLS).usage.input_tokens
    assert counted.input_tokens == used


def test_errors_have_the_client_s_own_types(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**FIELDS, "model": "other"})
    with pytest.raises(anthropic.BadRequestError, match="no_such_field"):
        client.messages.create(**{**FIELDS, "extra_body": {"no_such_field": 1}})
    with pytest.raises(anthropic.BadRequestError, match="image"):
        image = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
        client.messages.create(**{**FIELDS, "messages": [{"role": "user", "content": [image]}]})


def test_the_client_s_betas_are_served(client: anthropic.Anthropic) -> None:
    message = client.beta.messages.create(**{**PLAIN, "max_tokens": 4}, betas=["any-beta-2026-01-01"])
    assert message.usage.output_tokens == 4
