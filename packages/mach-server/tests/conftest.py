"""Servers on real sockets: in this process (fast, inspectable) and as a process of their own (signals)."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from mach.io.checkpoint_path import resolve_checkpoint
from mach_decode.engine import Engine, EngineConfig
from mach_decode.errors import GenerationCancelledError
from mach_decode.request import GenerationFigures, StepEvent
from mach_server.access import Access
from mach_server.expert_io import ExpertIO
from mach_server.http_server import HttpServer
from mach_server.inference_service import InferenceService
from mach_server.limits import Limits
from mach_server.listening_socket import tcp_socket
from mach_server.trace_recording import TraceRecording
from mach_store.engine_checkpoint import write_stacked_checkpoint

LIVENESS_SECONDS = 60.0
"""How long a test waits for what must come about; far more than it takes."""


def eventually(condition: Callable[[], Any]) -> Any:
    """The first true value of `condition`; fails when none comes in time."""
    deadline = time.monotonic() + LIVENESS_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)
    return value


class RunningServer:
    """A server in this process, its event loop in a thread of its own."""

    def __init__(
        self,
        config: EngineConfig,
        limits: Limits,
        engine_class: type[Engine],
        access: Access | None = None,
        recording: TraceRecording | None = None,
    ) -> None:
        self.service = InferenceService(config, limits, recording=recording, engine_class=engine_class)
        self._listening = tcp_socket("127.0.0.1", 0, limits)
        self._http = HttpServer(self.service, self._listening, access)
        self._stopped = False
        self.url = self._listening.url
        try:
            self.service.start()
        except BaseException:
            self._listening.close()
            raise
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(LIVENESS_SECONDS)
        self.client = httpx.Client(base_url=f"{self.url}/v1", timeout=LIVENESS_SECONDS)

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            runner.run(self._http.serve(self._ready.set))

    def begin_stop(self) -> None:
        self._loop.call_soon_threadsafe(self._http.stop)

    def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        self.client.close()
        with contextlib.suppress(RuntimeError):
            self.begin_stop()
        self._thread.join(LIVENESS_SECONDS)
        assert not self._thread.is_alive()
        self._listening.close()
        eventually(self.service.close)  # the rest of a long test run makes its garbage collection slow

    def end_grace(self) -> None:
        """What comes about by itself when the drain has lasted too long: open answers end."""
        self._loop.call_soon_threadsafe(self.service.abort)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    @property
    def connections(self) -> int:
        return len(self._http._connections)

    def stats(self) -> dict[str, Any]:
        return self.client.get("/stats").json()

    def chat(self, content: str = "def reverse(s):", **fields: Any) -> httpx.Response:
        return self.client.post("/chat/completions", json=self.body(content, **fields))

    def text(self, content: str = "def reverse(s):", **fields: Any) -> str:
        answer = self.chat(content, **fields)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["message"]["content"]

    def body(self, content: str = "def reverse(s):", **fields: Any) -> dict[str, Any]:
        model = self.service.facts.model
        return {"model": model, "messages": [{"role": "user", "content": content}], **fields}

    @contextlib.contextmanager
    def stream(self, content: str = "def reverse(s):", **fields: Any) -> Iterator[Iterator[Any]]:
        """The events of a streamed answer, of which the first has arrived; the client leaves at the end."""
        body = self.body(content, stream=True, **fields)
        with self.client.stream("POST", "/chat/completions", json=body) as response:
            assert response.status_code == 200
            events = events_of(response.iter_lines())
            first = next(events)
            # The iterator must stay alive: httpx closes the connection with it.
            yield (event for events_ in ([first], events) for event in events_)

    def events(self, content: str = "def reverse(s):", **fields: Any) -> list[Any]:
        with self.stream(content, **fields) as events:
            return list(events)

    def send_only(self, body: dict[str, Any]) -> http.client.HTTPConnection:
        """Post `body` and do not read the answer; the caller closes the connection."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=LIVENESS_SECONDS)
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        return connection


def events_of(lines: Iterator[str]) -> Iterator[Any]:
    """The data of server-sent events, parsed; "[DONE]" as it stands."""
    for line in lines:
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield data if data == "[DONE]" else json.loads(data)


class EndlessEngine(Engine):
    """Never finishes by itself: a word each millisecond until it is cancelled or has made max_tokens."""

    def generate(self, request: Any, cancelled: Callable[[], bool] = lambda: False) -> Iterator[StepEvent]:
        made, prompt = 0, len(request.prompt)
        while True:
            if cancelled():
                raise GenerationCancelledError("cancelled")
            time.sleep(0.001)
            made += 1
            if made == request.max_tokens:
                figures = GenerationFigures(
                    prompt_tokens=prompt,
                    completion_tokens=made,
                    first_token_seconds=0.001,
                    decode_seconds=0.001 * made,
                    expert_hits=0,
                    expert_misses=0,
                    bytes_read=0,
                    read_seconds=0.0,
                )
                yield StepEvent(
                    text="end", token=1, prefilled=prompt, finish_reason="length", figures=figures
                )
                return
            yield StepEvent(text="word ", token=1, prefilled=prompt)


class FailingEngine(EndlessEngine):
    """Fails after as many words as the request's top_k says, if it says any."""

    def generate(self, request: Any, cancelled: Callable[[], bool] = lambda: False) -> Iterator[StepEvent]:
        for made, event in enumerate(super().generate(request, cancelled)):
            if request.sampling.top_k == made + 1:
                raise RuntimeError("deliberate, in a test")
            yield event


@pytest.fixture(scope="module")
def start_server() -> Iterator[Callable[..., RunningServer]]:
    running: list[RunningServer] = []

    def start(
        checkpoint: str = "mach-pico",
        *,
        residency: str = "streaming",
        gb: float | None = None,
        limits: Limits | None = None,
        engine: type[Engine] = Engine,
        access: Access | None = None,
        recording: TraceRecording | None = None,
        **budgets: float,
    ) -> RunningServer:
        config = EngineConfig(
            checkpoint=checkpoint, expert_residency=residency, expert_cache_gb=gb, **budgets
        )
        running.append(RunningServer(config, limits or Limits(), engine, access, recording))
        return running[-1]

    yield start
    for server in running:
        server.stop()


@pytest.fixture(scope="module")
def server(start_server: Callable[..., RunningServer]) -> RunningServer:
    """mach-pico, streaming."""
    return start_server()


@pytest.fixture(scope="session")
def pico() -> Path:
    return resolve_checkpoint("mach-pico")


@pytest.fixture(scope="session")
def stacked(pico: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("checkpoints") / "pico-stacked"
    write_stacked_checkpoint(pico, output)
    return output


@pytest.fixture(scope="session")
def endless_engine() -> type[Engine]:
    return EndlessEngine


@pytest.fixture(scope="session")
def failing_engine() -> type[Engine]:
    return FailingEngine


@pytest.fixture(scope="session")
def tokens_of() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A usage without its bill for the experts, which differs from answer to answer."""

    def tokens(usage: dict[str, Any]) -> dict[str, Any]:
        assert set(usage["expert_io"]) == {field.name for field in msgspec.structs.fields(ExpertIO)}
        return {name: value for name, value in usage.items() if name != "expert_io"}

    return tokens


@pytest.fixture(name="eventually")
def _eventually() -> Callable[[Callable[[], Any]], Any]:
    return eventually


class ServerProcess:
    """`mach-serve` as a process; `lines` are its start-up lines."""

    def __init__(self, command: list[str]) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.lines: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if found := re.match(r"startup ready url=(\S+)", line):
                self.url = found[1]
                return
        raise AssertionError(f"it did not start: {self.process.communicate()[1]}")

    def end(self) -> tuple[int, str]:
        """Wait for its end; exit status and stderr."""
        _, stderr = self.process.communicate(timeout=LIVENESS_SECONDS)
        return self.process.returncode, stderr


@pytest.fixture
def start_process() -> Iterator[Callable[..., ServerProcess]]:
    started: list[ServerProcess] = []

    def start(*arguments: str, script: str | None = None) -> ServerProcess:
        program = ["-m", "mach_server.serve_command"] if script is None else ["-c", script]
        started.append(ServerProcess([sys.executable, *program, *arguments]))
        return started[-1]

    yield start
    for server in started:
        with server.process:  # closes its pipes and waits for it
            if server.process.poll() is None:
                server.process.kill()


@pytest.fixture
def run_serve() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `mach-serve` with arguments that it should refuse."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mach_server.serve_command", *arguments],
            capture_output=True,
            text=True,
            timeout=LIVENESS_SECONDS,
            env={**os.environ, **environment},
        )

    return run
