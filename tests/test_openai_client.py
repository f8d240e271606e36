"""The official OpenAI client against `mach-serve` as a process of its own, over a real socket."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest

from mach_decode.engine import Engine, EngineConfig
from mach_decode.request import GenerationRequest
from mach_decode.sampling import SamplingParams

MESSAGES = [
    {"role": "system", "content": "You write Python."},
    {"role": "user", "content": "def reverse(s):"},
]
PLAIN = {"chat_template_kwargs": {"enable_thinking": False}}
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
TOOLS = [{"type": "function", "function": WEATHER}]


class Colour(pydantic.BaseModel):
    """What the client's own parser fills in."""

    colour: Literal["red", "green"]


@pytest.fixture(scope="module")
def client(served_pico: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served_pico}/v1", api_key="any", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def library() -> Iterator[Engine]:
    engine = Engine.load(EngineConfig(checkpoint="mach-pico"))
    yield engine
    engine.close()


def library_answer(engine: Engine, *, temperature: float, seed: int, max_tokens: int) -> str:
    request = GenerationRequest(
        prompt=engine.render_chat(MESSAGES, enable_thinking=False),
        max_tokens=max_tokens,
        sampling=SamplingParams(temperature=temperature, seed=seed),
    )
    return "".join(event.text for event in engine.generate(request))


def assert_bill(bill: Any) -> None:
    """A bill for experts that are all in memory."""
    assert bill["hits"] > 0 and bill["compute_ms"] > 0
    assert (bill["misses"], bill["bytes_read"], bill["wait_ms"]) == (0, 0, 0)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_plain_chat_gives_the_library_s_text(
    client: openai.OpenAI, library: Engine, temperature: float
) -> None:
    answer = client.chat.completions.create(
        model="mach-pico",
        messages=MESSAGES,
        max_tokens=24,
        temperature=temperature,
        seed=11,
        extra_body=PLAIN,
    )
    expected = library_answer(library, temperature=temperature, seed=11, max_tokens=24)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens == len(library.render_chat(MESSAGES, enable_thinking=False))
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert_bill(answer.usage.expert_io)  # the client shows what it does not know


def test_a_streamed_chat_gives_the_same_text_in_pieces(client: openai.OpenAI, library: Engine) -> None:
    stream = client.chat.completions.create(
        model="mach-pico",
        messages=MESSAGES,
        max_completion_tokens=24,
        temperature=0.8,
        seed=11,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=PLAIN,
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == library_answer(library, temperature=0.8, seed=11, max_tokens=24)
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert_bill(chunks[-1].usage.expert_io)
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_stream_helper_accumulates_the_answer(client: openai.OpenAI) -> None:
    fields = {"model": "mach-pico", "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    with client.chat.completions.stream(**fields) as stream:
        stream.until_done()
        accumulated = stream.current_completion_snapshot.choices[0].message.content
    assert accumulated == client.chat.completions.create(**fields).choices[0].message.content


def test_a_conversation_goes_on_with_the_client_s_own_message_objects(client: openai.OpenAI) -> None:
    fields = {"model": "mach-pico", "max_tokens": 4, "temperature": 0}
    first = client.chat.completions.create(messages=MESSAGES, **fields).choices[0].message
    messages = [*MESSAGES, first, {"role": "user", "content": [{"type": "text", "text": "and now?"}]}]
    second = client.chat.completions.create(messages=messages, **fields)
    assert second.usage is not None and second.usage.completion_tokens <= 4


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["mach-pico"]


def test_extensions_travel_in_the_extra_body(client: openai.OpenAI) -> None:
    extra = {"top_k": 1, "min_p": 0.0, "repetition_penalty": 1.0}
    fields = {"model": "mach-pico", "messages": MESSAGES, "max_tokens": 12, "seed": 3}
    narrow = client.chat.completions.create(temperature=1.0, extra_body=extra, **fields)
    greedy = client.chat.completions.create(temperature=0.0, **fields)
    assert narrow.choices[0].message.content == greedy.choices[0].message.content


def test_errors_have_the_client_s_own_types(client: openai.OpenAI) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as missing:
        create(model="other", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        create(model="mach-pico", messages=[{"role": "user", "content": "word " * 5000}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as refused:
        create(model="mach-pico", messages=MESSAGES, n=2, stream=True)
    assert refused.value.param == "n"
    with pytest.raises(openai.BadRequestError) as unknown:
        create(model="mach-pico", messages=MESSAGES, extra_body={"no_such_field": 1})
    assert (unknown.value.param, unknown.value.code) == ("no_such_field", "unknown_parameter")


def test_logprobs_penalties_and_biases_are_honoured(client: openai.OpenAI, library: Engine) -> None:
    (banned,) = library.encode("def")[:1]
    fields = {"model": "mach-pico", "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    told = client.chat.completions.create(**fields, logprobs=True, top_logprobs=3, extra_body=PLAIN).choices[
        0
    ]
    assert told.logprobs is not None and told.logprobs.content is not None
    assert "".join(entry.token for entry in told.logprobs.content) == told.message.content
    assert all(entry.top_logprobs[0].logprob == entry.logprob <= 0 for entry in told.logprobs.content)
    assert "def" in told.message.content
    biased = client.chat.completions.create(**fields, logit_bias={str(banned): -100}, extra_body=PLAIN)
    assert "def" not in biased.choices[0].message.content
    repeated = {"model": "mach-pico", "prompt": "0, 0, 0, 0, 0,", "max_tokens": 8, "temperature": 0}
    usual = client.completions.create(**repeated).choices[0].text
    varied = client.completions.create(**repeated, frequency_penalty=2.0, presence_penalty=2.0)
    assert usual.count("0") > varied.choices[0].text.count("0")


def test_reasoning_comes_apart_from_the_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="mach-pico", messages=MESSAGES, max_tokens=40, temperature=0, reasoning_effort="low"
    )
    message = answer.choices[0].message
    assert message.reasoning_content == message.reasoning != ""
    assert "<think>" not in message.content
    assert answer.usage.completion_tokens_details.reasoning_tokens > 0


def test_tools_are_called_and_their_results_understood(client: openai.OpenAI) -> None:
    fields = {"model": "mach-pico", "tools": TOOLS, "temperature": 0, "max_tokens": 200}
    first = client.chat.completions.create(messages=ASK, **fields)
    assert first.choices[0].finish_reason == "tool_calls"
    (call,) = first.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"weather": "sunny"}'}
    second = client.chat.completions.create(messages=[*ASK, first.choices[0].message, result], **fields)
    assert second.choices[0].message.content


def test_the_stream_helper_puts_a_call_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="mach-pico",
        messages=ASK,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        extra_body=PLAIN,
    ) as stream:
        answer = stream.get_final_completion()
    (call,) = answer.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"]


def test_the_client_s_own_models_are_filled_in(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(
        model="mach-pico", messages=MESSAGES, response_format=Colour, temperature=0, extra_body=PLAIN
    )
    assert isinstance(parsed.choices[0].message.parsed, Colour)


def test_completions_go_on_from_text(client: openai.OpenAI) -> None:
    fields = {"model": "mach-pico", "prompt": "import numpy as", "max_tokens": 4, "temperature": 0}
    whole = client.completions.create(**fields, logprobs=2, echo=True).choices[0]
    assert whole.text.startswith("import numpy as np")
    assert "".join(whole.logprobs.tokens) == whole.text
    pieces = client.completions.create(**fields, stream=True)
    assert "import numpy as" + "".join(piece.choices[0].text for piece in pieces) == whole.text


def test_responses_are_made_and_streamed(client: openai.OpenAI) -> None:
    fields = {
        "model": "mach-pico",
        "input": "def reverse(s):",
        "temperature": 0,
        "max_output_tokens": 160,
        "store": False,
        "extra_body": {"seed": 1},
    }
    whole = client.responses.create(**fields)
    kinds = [item.type for item in whole.output]
    assert kinds == ["reasoning", "message"] and whole.output_text
    events = list(client.responses.create(**fields, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text == events[-1].response.output_text
    assert_bill(whole.usage.expert_io)
    assert_bill(events[-1].response.usage.expert_io)
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens


def test_responses_call_functions_and_take_their_results(client: openai.OpenAI) -> None:
    fields = {
        "model": "mach-pico",
        "tools": [{"type": "function", "strict": True, **WEATHER}],
        "temperature": 0,
    }
    first = client.responses.create(input=ASK, max_output_tokens=200, **fields)
    call = first.output[-1]
    assert (call.type, json.loads(call.arguments)) == ("function_call", {"city": "Paris"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"weather": "sunny"}'}
    second = client.responses.create(input=[*ASK, *first.output, result], max_output_tokens=100, **fields)
    assert second.output


def test_the_responses_helper_fills_in_models(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model="mach-pico", input="A colour.", text_format=Colour, temperature=0
    ) as stream:
        stream.until_done()
        assert isinstance(stream.get_final_response().output_parsed, Colour)


def test_leaving_a_stream_leaves_the_server_ready(client: openai.OpenAI) -> None:
    for _ in range(3):
        with client.chat.completions.create(
            model="mach-pico", messages=MESSAGES, stream=True, temperature=2.0
        ) as stream:
            next(iter(stream))
    assert client.chat.completions.create(model="mach-pico", messages=MESSAGES, max_tokens=1).choices
