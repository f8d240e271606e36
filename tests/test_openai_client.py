"""The official OpenAI client against `mach-serve` as a process of its own, over a real socket."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from mach_decode.engine import Engine, EngineConfig
from mach_decode.request import GenerationRequest
from mach_decode.sampling import SamplingParams

MESSAGES = [
    {"role": "system", "content": "You write Python."},
    {"role": "user", "content": "def reverse(s):"},
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    log = tmp_path_factory.mktemp("serve") / "stderr"
    command = [sys.executable, "-m", "mach_server.serve_command", "mach-pico", "--streaming", "--port", "0"]
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as server,
    ):
        try:
            url = next(
                (found[1] for line in server.stdout or () if (found := re.search(r"ready url=(\S+)", line))),
                None,
            )
            assert url, log.read_text()
            with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=60) as client:
                yield client
        finally:
            server.terminate()
            try:
                status = server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
                raise
    assert status == 0
    assert "Traceback" not in Path(log).read_text()


@pytest.fixture(scope="module")
def library() -> Iterator[Engine]:
    engine = Engine.load(EngineConfig(checkpoint="mach-pico"))
    yield engine
    engine.close()


def library_answer(engine: Engine, *, temperature: float, seed: int, max_tokens: int) -> str:
    request = GenerationRequest(
        prompt=engine.render_chat(MESSAGES),
        max_tokens=max_tokens,
        sampling=SamplingParams(temperature=temperature, seed=seed),
    )
    return "".join(event.text for event in engine.generate(request))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_plain_chat_gives_the_library_s_text(
    client: openai.OpenAI, library: Engine, temperature: float
) -> None:
    answer = client.chat.completions.create(
        model="mach-pico", messages=MESSAGES, max_tokens=24, temperature=temperature, seed=11
    )
    expected = library_answer(library, temperature=temperature, seed=11, max_tokens=24)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens == len(library.render_chat(MESSAGES))
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_a_streamed_chat_gives_the_same_text_in_pieces(client: openai.OpenAI, library: Engine) -> None:
    stream = client.chat.completions.create(
        model="mach-pico",
        messages=MESSAGES,
        max_completion_tokens=24,
        temperature=0.8,
        seed=11,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == library_answer(library, temperature=0.8, seed=11, max_tokens=24)
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
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
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    with pytest.raises(openai.BadRequestError) as refused:
        create(model="mach-pico", messages=MESSAGES, tools=tools, stream=True)
    assert refused.value.param == "tools"


def test_leaving_a_stream_leaves_the_server_ready(client: openai.OpenAI) -> None:
    for _ in range(3):
        with client.chat.completions.create(
            model="mach-pico", messages=MESSAGES, stream=True, temperature=2.0
        ) as stream:
            next(iter(stream))
    assert client.chat.completions.create(model="mach-pico", messages=MESSAGES, max_tokens=1).choices
