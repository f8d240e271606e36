"""`/v1/completions` over a real socket, and what its bodies mean."""

import json
from typing import Any

import pytest

from mach_decode.engine import Engine, EngineConfig
from mach_server.completions_request import parse_completion_request
from mach_server.errors import ApiError
from mach_server.limits import Limits


def post(server, prompt: Any = "import numpy as", **fields: Any):
    body = {"model": "mach-pico", "prompt": prompt, "temperature": 0, **fields}
    return server.client.post("/completions", json=body)


def answer(server, prompt: Any = "import numpy as", **fields: Any) -> dict[str, Any]:
    response = post(server, prompt, **fields)
    assert response.status_code == 200, response.text
    return response.json()


def streamed(server, **fields: Any) -> list[Any]:
    lines = post(server, stream=True, **fields).text.splitlines()
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(text) for text in data[:-1]]


@pytest.fixture(scope="module")
def engine():
    engine = Engine.load(EngineConfig(checkpoint="mach-pico"))
    yield engine
    engine.close()


def test_text_goes_on_without_a_template(server, engine: Engine) -> None:
    body = answer(server, max_tokens=6)
    choice = body["choices"][0]
    assert (body["object"], choice["finish_reason"], choice["logprobs"]) == (
        "text_completion",
        "length",
        None,
    )
    assert choice["text"].startswith(" np\n")
    assert body["usage"]["prompt_tokens"] == len(engine.encode("import numpy as"))
    assert body["usage"]["completion_tokens"] == 6


def test_sixteen_tokens_are_the_default(server) -> None:
    assert answer(server)["usage"]["completion_tokens"] <= 16


def test_tokens_are_a_prompt_too_and_a_list_of_one_is_one(server, engine: Engine) -> None:
    text = answer(server, max_tokens=6)["choices"][0]["text"]
    tokens = list(engine.encode("import numpy as"))
    for prompt in (tokens, [tokens], ["import numpy as"]):
        assert answer(server, prompt, max_tokens=6)["choices"][0]["text"] == text


def test_an_echo_comes_before_the_answer_with_its_logprobs(server, engine: Engine) -> None:
    prompt = "import numpy as"
    choice = answer(server, max_tokens=6, echo=True, logprobs=3)["choices"][0]
    told = choice["logprobs"]
    assert choice["text"].startswith(prompt + " np")
    assert "".join(told["tokens"]) == choice["text"]
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    assert len(told["tokens"]) == len(engine.encode(prompt)) + 6
    for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token)
    for token, logprob, top in list(
        zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True)
    )[1:]:
        assert 3 <= len(top) <= 4
        assert top[token] == logprob <= max(top.values())


def test_a_prompt_is_measured_without_an_answer(server) -> None:
    whole = answer(server, max_tokens=1, echo=True, logprobs=1)["choices"][0]["logprobs"]
    body = answer(server, max_tokens=0, echo=True, logprobs=1)
    told = body["choices"][0]["logprobs"]
    assert body["choices"][0]["text"] == "import numpy as"
    assert body["usage"]["completion_tokens"] == 0
    assert told == {name: values[:-1] for name, values in whole.items()}
    assert answer(server, max_tokens=0, echo=True)["choices"][0]["text"] == "import numpy as"


@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_adds_up_to_the_whole(server, tokens_of, echo: bool) -> None:
    fields = {"max_tokens": 8, "logprobs": 2, "echo": echo}
    plain = answer(server, **fields)
    *chunks, usage = streamed(server, stream_options={"include_usage": True}, **fields)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == plain["choices"][0]["text"]
    for name, values in plain["choices"][0]["logprobs"].items():
        assert [value for choice in choices for value in choice["logprobs"][name]] == values
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
    assert tokens_of(usage["usage"]) == tokens_of(plain["usage"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"n": 2}, "n"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"stream_options": {}}, "stream_options"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    body = json.dumps({"model": "m", "prompt": "x", **fields}).encode()
    with pytest.raises(ApiError) as caught:
        parse_completion_request(body).answer_request(frozenset({"m"}), Limits())
    assert (caught.value.status, caught.value.param) == (400, param)


def test_the_prompts_that_are_measured_are_bounded(start_server) -> None:
    server = start_server(limits=Limits(measured_prompt_tokens=3))
    assert post(server, [5, 6, 7], echo=True, logprobs=1).status_code == 200
    refused = post(server, [5, 6, 7, 8], echo=True, logprobs=1)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
    assert post(server, [5, 6, 7, 8], echo=True, max_tokens=1).status_code == 200


def test_a_token_that_is_none_and_a_prompt_that_is_too_long_are_refused(server) -> None:
    for echo in (False, True):
        refused = post(server, [1, 1 << 40], echo=echo)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
    refused = post(server, [5] * 5000)
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert refused.json()["error"]["param"] == "prompt"
