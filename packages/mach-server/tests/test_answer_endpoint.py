import asyncio
import json
import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import httpx
import pytest

from mach_decode.engine import Engine, EngineConfig
from mach_decode.request import GenerationRequest, StepEvent
from mach_decode.sampling import SamplingParams
from mach_server.limits import Limits

PLAIN = {"chat_template_kwargs": {"enable_thinking": False}}
GREEDY = {"temperature": 0, "max_tokens": 24, **PLAIN}
SAMPLED = {
    "temperature": 0.9,
    "top_p": 0.95,
    "top_k": 50,
    "min_p": 0.01,
    "seed": 7,
    "frequency_penalty": 0.2,
    "presence_penalty": 0.1,
    "max_tokens": 24,
    **PLAIN,
}
PROMPTS = ("def reverse(s):", "Write a class for a stack.", "Explain recursion.", "import json")


@pytest.fixture(scope="module")
def library() -> Iterator[Engine]:
    engine = Engine.load(EngineConfig(checkpoint="mach-pico"))
    yield engine
    engine.close()


@pytest.fixture(autouse=True)
def _no_traceback_in_the_log(
    caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> Iterator[None]:
    yield
    if "logs_a_traceback" not in request.fixturenames:
        assert not [record for record in caplog.records if record.exc_info]


@pytest.fixture
def logs_a_traceback() -> None:
    """Asked for by a test whose engine fails in a way that deserves a traceback in the log."""


def answer_of(
    engine: Engine, content: str, max_tokens: int, stop: tuple[str, ...] = (), **sampling: Any
) -> str:
    options = sampling.pop("chat_template_kwargs")
    prompt = engine.render_chat([{"role": "user", "content": content}], **options)
    request = GenerationRequest(
        prompt=prompt, max_tokens=max_tokens, stop=stop, sampling=SamplingParams(**sampling)
    )
    return "".join(event.text for event in engine.generate(request))


def streamed(events: list[Any]) -> str:
    return "".join(
        choice["delta"].get("content", "") for e in events if e != "[DONE]" for choice in e["choices"]
    )


@pytest.mark.parametrize("fields", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_http_gives_the_text_that_the_library_gives(server, library: Engine, fields: dict[str, Any]) -> None:
    for content in PROMPTS[:2]:
        assert server.text(content, **fields) == answer_of(library, content, **fields)


@pytest.mark.parametrize("fields", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_stream_adds_up_to_the_plain_answer(server, tokens_of, fields: dict[str, Any]) -> None:
    events = server.events(stream_options={"include_usage": True}, **fields)
    plain = server.chat(**fields).json()
    assert streamed(events) == plain["choices"][0]["message"]["content"]
    *chunks, usage, done = events
    assert done == "[DONE]"
    assert usage["choices"] == [] and tokens_of(usage["usage"]) == tokens_of(plain["usage"])
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [plain["choices"][0]["finish_reason"]]


def test_clients_at_once_get_the_answers_they_get_alone(server) -> None:
    alone = [server.text(content, **SAMPLED) for content in PROMPTS]
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        plain = [pool.submit(server.text, content, **SAMPLED) for content in PROMPTS]
        streams = [pool.submit(server.events, content, **SAMPLED) for content in PROMPTS]
        assert [answer.result() for answer in plain] == alone
        assert [streamed(answer.result()) for answer in streams] == alone


def test_usage_counts_prompt_and_answer(server, library: Engine) -> None:
    body = server.chat(max_tokens=5, temperature=0).json()
    prompt = library.render_chat([{"role": "user", "content": "def reverse(s):"}])
    assert body["usage"]["prompt_tokens"] == len(prompt)
    assert body["usage"]["completion_tokens"] == 5
    assert body["usage"]["total_tokens"] == len(prompt) + 5
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["model"] == "mach-pico"


def test_a_silent_stream_is_kept_alive_with_its_progress(start_server, endless_engine) -> None:
    queued, prefill = threading.Event(), threading.Event()

    class SlowStart(endless_engine):
        """Goes on when its client has been told how far it is."""

        def generate(self, request, cancelled=lambda: False):
            yield StepEvent(prefilled=1)
            if request.max_tokens > 1:
                assert prefill.wait(60)
            yield from super().generate(request, cancelled)

    class SlowQueue(SlowStart):
        def generate(self, request, cancelled=lambda: False):
            assert request.max_tokens == 1 or queued.wait(60)
            yield from super().generate(request, cancelled)

    server = start_server(engine=SlowQueue, limits=Limits(keep_alive_seconds=0.02))
    length = server.chat(max_tokens=1).json()["usage"]["prompt_tokens"]
    lines = []
    with server.client.stream(
        "POST", "/chat/completions", json=server.body(stream=True, max_tokens=2)
    ) as sent:
        for line in filter(None, sent.iter_lines()):
            lines.append(line)
            if line == ": queued":
                queued.set()
            elif line.startswith(": prefill"):
                prefill.set()
    comments = [line for line in lines if line.startswith(":")]
    assert lines[0] in (": preparing", ": queued"), "the status line goes out with the first comment"
    assert ": queued" in comments and f": prefill 1/{length} tokens" in comments
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: {")]
    assert streamed([json.loads(text) for text in data]) == "word end"


def test_a_long_preparation_is_kept_alive_and_its_refusal_is_an_event(start_server, monkeypatch) -> None:
    server = start_server(limits=Limits(keep_alive_seconds=0.02))
    prompt_of = server.service.preparation.prompt_of

    async def slowly(request):
        await asyncio.sleep(0.1)
        return await prompt_of(request)

    monkeypatch.setattr(server.service.preparation, "prompt_of", slowly)
    body = server.body("word " * 3000, stream=True)
    lines = [line for line in server.client.post("/chat/completions", json=body).text.splitlines() if line]
    assert set(lines[:-1]) == {": preparing"}
    assert "context_length_exceeded" in lines[-1]


def test_a_failure_after_a_comment_is_an_event(start_server, failing_engine, logs_a_traceback: None) -> None:
    commented = threading.Event()

    class SlowFailure(failing_engine):
        def generate(self, request, cancelled=lambda: False):
            assert commented.wait(60)
            yield from super().generate(request, cancelled)

    server = start_server(engine=SlowFailure, limits=Limits(keep_alive_seconds=0.02))
    body = server.body(stream=True, top_k=1)
    with server.client.stream("POST", "/chat/completions", json=body) as sent:
        assert sent.status_code == 200
        lines = sent.iter_lines()
        assert next(lines).startswith(":")
        commented.set()
        (event,) = (json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: "))
    assert event["error"]["type"] == "server_error"


def test_64_clients_at_once_get_their_own_answers_or_are_told_to_wait(start_server) -> None:
    server = start_server(limits=Limits(queue_length=40))
    fields = [{**GREEDY, "max_tokens": 4, "seed": n, "temperature": 1.0} for n in range(64)]
    alone = [server.text("import json", **given) for given in fields[:8]]
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda given: server.chat("import json", **given), fields))
    assert {answer.status_code for answer in answers} <= {200, 429}
    served = [n for n, answer in enumerate(answers) if answer.status_code == 200]
    assert len(served) >= 41
    for n in range(8):
        if n in served:
            assert answers[n].json()["choices"][0]["message"]["content"] == alone[n]
    assert server.stats()["requests"]["open"] == 0


def test_200_rapid_connections_leave_nothing_behind(server, eventually) -> None:
    body = httpx.Request("POST", server.url, json=server.body(stream=True)).content
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: [::1]\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    )
    before = server.connections
    for number in range(200):
        with socket.create_connection(server.address, timeout=30) as client:
            client.sendall((head + body)[: (number * 37) % (len(head) + len(body) + 1)])
    eventually(lambda: server.connections <= before + 1)
    eventually(lambda: server.stats()["requests"]["open"] == 0)
    assert server.text(max_tokens=2, temperature=0, **PLAIN)


def test_half_closing_counts_as_leaving(start_server, endless_engine, eventually) -> None:
    server = start_server(engine=endless_engine)
    body = httpx.Request("POST", server.url, json=server.body()).content
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: [::1]\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    )
    with socket.create_connection(server.address, timeout=30) as client:
        client.sendall(head + body)
        eventually(lambda: server.stats()["running"])
        client.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: client.recv(65536), b"")) == b""
    eventually(lambda: server.stats()["requests"]["open"] == 0)
    assert server.text(max_tokens=2) == "word end"


def test_64_megabytes_are_refused_and_not_kept(server) -> None:
    peak = server.stats()["memory"]["peak_rss_bytes"]

    def pieces() -> Iterator[bytes]:
        for _ in range(64):
            yield b" " * (1 << 20)

    answer = server.client.post("/chat/completions", content=pieces())
    assert answer.status_code == 413
    assert server.stats()["memory"]["peak_rss_bytes"] < peak + (40 << 20)


def test_stop_strings_end_the_answer_and_are_not_part_of_it(server) -> None:
    whole = server.text(**GREEDY)
    stop = whole[len(whole) // 2 :][:3]
    expected = whole[: whole.index(stop)]
    plain = server.chat(stop=stop, **GREEDY).json()["choices"][0]
    assert (plain["message"]["content"], plain["finish_reason"]) == (expected, "stop")
    assert streamed(server.events(stop=["\0never", stop], **GREEDY)) == expected


def test_template_options_reach_the_template(server, library: Engine) -> None:
    message = [{"role": "user", "content": "hi"}]
    expected = len(library.render_chat(message, enable_thinking=False))
    body = server.chat("hi", max_tokens=1, chat_template_kwargs={"enable_thinking": False}).json()
    assert body["usage"]["prompt_tokens"] == expected


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b'{"model": ', 400),
        (b"\xff\xfe", 400),
        (b'{"model": "mach-pico", "messages": [{"role": "user", "content": "\xff"}]}', 400),
        (b'{"model": "mach-pico", "messages": 5}', 400),
        (b'{"model": "other", "messages": [{"role": "user", "content": "x"}]}', 404),
    ],
)
def test_bad_bodies_get_an_error_object(server, body: bytes, status: int) -> None:
    answer = server.client.post("/chat/completions", content=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
def test_an_over_long_prompt_is_refused_before_it_is_queued(server, stream: bool) -> None:
    answer = server.chat("word " * 3000, stream=stream)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert str(server.service.facts.context_length) in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_beyond_the_memory_for_keys_and_values_is_refused_before_it_is_queued(
    start_server, stream: bool
) -> None:
    small = start_server(gb=0.016, kv_cache_gb=0.004)
    facts = small.service.facts
    assert 256 <= facts.kv_tokens < facts.context_length
    assert small.client.get("/models").json()["data"][0]["max_model_len"] == facts.kv_tokens
    long, greedy = (
        small.chat("word " * 900, stream=stream),
        small.chat(max_tokens=facts.kv_tokens, stream=stream),
    )
    for answer, param in ((long, "messages"), (greedy, "max_tokens")):
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("kv_cache_exceeded", param)
        assert f"0.004 GB are set apart for them, which hold {facts.kv_tokens} tokens" in error["message"]
    assert small.chat(max_tokens=4).status_code == 200
    counted = small.client.post("/messages/count_tokens", json=small.body("word " * 900))
    assert counted.json()["input_tokens"] > 900, "counting is not answering"
    assert small.stats()["memory"]["kv_budget_bytes"] == facts.kv_budget_bytes


def test_a_body_that_is_too_large_is_refused_after_it_was_sent(start_server) -> None:
    small = start_server(limits=Limits(body_bytes=10_000, discarded_bytes=5_000_000))
    answer = small.client.post("/chat/completions", content=b" " * 4_000_000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert small.chat(max_tokens=1).status_code == 200


def test_a_body_that_does_not_arrive_is_given_up(start_server) -> None:
    impatient = start_server(limits=Limits(body_seconds=0.2))
    with socket.create_connection(impatient.address, timeout=30) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 10\r\n\r\n{")
        assert client.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_client_that_leaves_a_stream_frees_the_engine(start_server, endless_engine, eventually) -> None:
    server = start_server(engine=endless_engine)
    with server.stream():
        pass
    eventually(lambda: server.stats()["requests"]["cancelled"] == 1)
    assert server.text(max_tokens=2) == "word end"
    assert server.stats()["requests"]["open"] == 0


def test_a_client_that_leaves_a_plain_request_frees_the_engine(
    start_server, endless_engine, eventually
) -> None:
    server = start_server(engine=endless_engine)
    connection = server.send_only(server.body())
    eventually(lambda: (server.stats()["running"] or {}).get("completion_tokens"))
    connection.close()
    eventually(lambda: server.stats()["requests"]["cancelled"] == 1)
    assert server.text(max_tokens=2) == "word end"


def test_a_client_that_leaves_the_queue_is_never_run(start_server, endless_engine, eventually) -> None:
    server = start_server(engine=endless_engine)
    with server.stream():
        waiting = server.send_only(server.body())
        eventually(lambda: server.stats()["queue_depth"] == 1)
        waiting.close()
        eventually(lambda: server.stats()["requests"]["withdrawn"] == 1)
        assert server.stats()["queue_depth"] == 0
        eventually(lambda: server.stats()["requests"]["open"] == 1)
    eventually(lambda: server.stats()["running"] is None)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_in_prefill_frees_the_engine(
    server, library: Engine, eventually, stream: bool
) -> None:
    line = "x = 1\n"
    lines = library.context_length * 9 // 10 // len(library.encode(line * 100)) * 100
    before = server.stats()["requests"]
    connection = server.send_only(server.body(line * lines, stream=stream))
    running = eventually(lambda: server.stats()["running"])
    connection.close()
    assert running["phase"] == "prefill" and running["prompt_tokens"] > library.context_length // 2
    assert server.text(max_tokens=2, temperature=0, **PLAIN)
    after = server.stats()["requests"]
    assert after["cancelled"] == before["cancelled"] + 1
    assert after["completed"] == before["completed"] + 1


def test_a_full_queue_refuses_with_retry_after(start_server, endless_engine, eventually) -> None:
    server = start_server(engine=endless_engine, limits=Limits(queue_length=1, retry_after=3))
    with server.stream():
        waiting = server.send_only(server.body(max_tokens=1))
        eventually(lambda: server.stats()["queue_depth"] == 1)
        refused = server.chat()
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "3"
        assert refused.json()["error"]["code"] == "queue_full"
    assert waiting.getresponse().status == 200
    waiting.close()


def test_a_client_that_never_reads_is_cancelled_and_buffers_stay_bounded(
    start_server, endless_engine, eventually
) -> None:
    limits = Limits(client_buffer_events=8, send_buffer_bytes=4096)
    server = start_server(engine=endless_engine, limits=limits)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(server.address)
        body = httpx.Request("POST", server.url, json=server.body(stream=True)).content
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: [::1]\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        eventually(lambda: server.stats()["requests"]["cancelled"] == 1)
        assert server.text(max_tokens=2) == "word end"
        assert server.stats()["requests"]["open"] == 0
        server.stop()  # it does not hold up the end either


def test_a_failing_generation_does_not_break_the_next(
    start_server, failing_engine, logs_a_traceback: None, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_server(engine=failing_engine)
    for stream in (False, True):
        failed = server.chat(top_k=1, stream=stream)
        assert failed.status_code == 500
        assert failed.json()["error"]["type"] == "server_error"
        assert "deliberate" not in failed.text
    assert server.text(max_tokens=2) == "word end"
    assert server.stats()["requests"]["failed"] == 2
    assert [r.levelno for r in caplog.records if r.name == "mach.server"] == [logging.ERROR] * 2


def test_an_error_in_the_middle_of_a_stream_is_its_last_event(
    start_server, failing_engine, logs_a_traceback: None
) -> None:
    server = start_server(engine=failing_engine)
    events = server.events(top_k=4)
    assert streamed(events[:-1]) == "word word word"
    assert events[-1]["error"]["type"] == "server_error"


def test_a_corrupted_expert_fails_its_request_by_name_and_no_other(
    start_server, pico: Path, tmp_path: Path
) -> None:
    checkpoint = Path(copytree(pico, tmp_path / "pico"))
    layer = sorted((checkpoint / "expert_sidecar").glob("layer_*.bin"))[-1]
    whole = layer.read_bytes()
    server = start_server(str(checkpoint), gb=0.01)
    layer.write_bytes(bytes(byte ^ 1 for byte in whole))
    failed = server.chat("x = 1\n" * 20, **GREEDY)
    layer.write_bytes(whole)
    assert failed.status_code == 500
    assert "layer" in failed.json()["error"]["message"] and "expert" in failed.json()["error"]["message"]
    assert server.text(**GREEDY)
    assert server.stats()["requests"]["failed"] == 1


def test_a_dead_generation_thread_is_told_and_not_waited_for(start_server, endless_engine) -> None:
    server = start_server(engine=endless_engine)
    assert server.service.thread.close(30)
    refused = server.chat()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_dead")


def test_draining_refuses_new_requests_and_lets_running_ones_finish(
    start_server, endless_engine, eventually
) -> None:
    server = start_server(engine=endless_engine)
    with server.stream(max_tokens=4000) as events:
        server.begin_stop()
        eventually(lambda: server.service.draining)
        refused = server.chat()
        assert refused.status_code == 503 and "retry-after" in refused.headers
        assert server.client.get("/models").status_code == 503
        assert list(events)[-1] == "[DONE]"
    server.stop()


def test_after_the_grace_period_running_requests_are_cancelled(
    start_server, endless_engine, eventually
) -> None:
    server = start_server(engine=endless_engine, limits=replace(Limits(), drain_seconds=0.2))
    plain: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: plain.append(server.chat()))
    with server.stream() as events:
        waiting.start()
        eventually(lambda: server.stats()["queue_depth"] == 1)
        server.begin_stop()
        assert list(events)[-1]["error"]["code"] == "shutting_down"
    waiting.join()
    assert plain[0].status_code == 503
    server.stop()


def test_an_answer_that_takes_too_long_is_ended_and_the_engine_free(
    start_server, endless_engine, eventually
) -> None:
    server = start_server(engine=endless_engine, limits=Limits(request_seconds=1.0))
    answer = server.chat()
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "request_timeout")
    # OpenAI's and Anthropic's clients would otherwise ask again.
    assert answer.headers["x-should-retry"] == "false"
    assert server.events()[-1]["error"]["code"] == "request_timeout"
    asked = {"model": "mach-pico", "max_tokens": 5000, "messages": [{"role": "user", "content": "x"}]}
    told = server.client.post("/messages", json=asked).json()
    assert told["error"]["type"] == "timeout_error"
    eventually(lambda: server.stats()["running"] is None)
    assert server.chat(max_tokens=2).status_code == 200


def test_waiting_counts_towards_an_answer_s_time(start_server, endless_engine, eventually) -> None:
    server = start_server(engine=endless_engine, limits=Limits(request_seconds=1.0))
    with server.stream():
        assert server.chat().status_code == 504
    eventually(lambda: server.stats()["requests"]["open"] == 0)


def test_a_prompt_beyond_the_server_s_own_bound_is_refused(start_server) -> None:
    server = start_server(limits=Limits(prompt_tokens=20))
    assert server.chat("x", max_tokens=1).status_code == 200
    answer = server.chat("x " * 50)
    assert answer.status_code == 400
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (
        "messages",
        "prompt_too_long",
    )
    counted = server.client.post("/messages/count_tokens", json=server.body("x " * 50))
    assert counted.json()["input_tokens"] > 20
