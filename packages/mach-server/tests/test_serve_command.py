import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

import httpx
import pytest

from mach_server import launcher, serve_command

SLOW = """
import sys, time, functools
from mach_decode.engine import Engine
from mach_decode.request import GenerationFigures, StepEvent
from mach_server import serve_command
from mach_server.inference_service import InferenceService

class SlowEngine(Engine):
    def generate(self, request, cancelled=lambda: False):
        for made in range(request.max_tokens - 1):
            time.sleep(0.01)
            yield StepEvent(text="word ", token=1)
        figures = GenerationFigures(prompt_tokens=1, completion_tokens=1, first_token_seconds=1.0,
            decode_seconds=1.0, expert_hits=0, expert_misses=0, bytes_read=0, read_seconds=0.0)
        yield StepEvent(text="end", token=1, finish_reason="stop", figures=figures)

serve_command.InferenceService = functools.partial(InferenceService, engine_class=SlowEngine)
sys.exit(serve_command.main())
"""
WAITING = """
import os, sys, time, functools
from mach_decode.engine import Engine
from mach_server import serve_command
from mach_server.inference_service import InferenceService

class WaitingEngine(Engine):
    @classmethod
    def load(cls, config):
        while not os.path.exists("go"):
            time.sleep(0.01)
        return super().load(config)

serve_command.InferenceService = functools.partial(InferenceService, engine_class=WaitingEngine)
sys.exit(serve_command.main())
"""
CHAT = {"model": "mach-pico", "messages": [{"role": "user", "content": "x"}], "stream": True}
USUAL = ("mach-pico", "--streaming", "--port", "0")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["mach-pico"], "one of --streaming and --no-streaming is required"),
        (["mach-pico", "--streaming", "--no-streaming"], "not allowed with"),
        (["--streaming"], "name one checkpoint"),
        (["a", "--checkpoint", "b", "--streaming"], "name one checkpoint"),
        (["mach-pico", "--streaming", "--backend", "openai"], "leave out --streaming"),
        (["mach-pico", "--backend", "openai", "--no-streaming"], "leave out --streaming"),
        (["mach-pico", "--backend", "openai", "--expert-cache-gb", "1"], "leave out --streaming"),
        (["mach-pico", "--streaming", "--backend", "llama"], "invalid choice: 'llama'"),
        (["mach-pico", "--streaming", "--draft-dir", "d"], "unrecognized arguments: --draft-dir"),
        (["mach-pico", "--streaming", "--continuous-batching"], "unrecognized arguments"),
        (["mach-pico", "--streaming", "--port", "70000"], "not a whole number from 0 to 65535"),
        (["mach-pico", "--stream"], "unrecognized arguments: --stream"),
        (["mach-pico", "--no-streaming", "--expert-cache-gb", "1"], "--expert-cache-gb needs --streaming"),
    ],
)
def test_wrong_usage_is_explained_and_has_status_2(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve_command.main(arguments) == 2
    captured = capsys.readouterr()
    assert why in captured.err and captured.err.startswith("usage: mach-serve")
    assert captured.out == ""


def test_help_has_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve_command.main(["--help"]) == 0
    assert "--expert-cache-gb" in capsys.readouterr().out


def test_mach_finds_the_command_under_its_name() -> None:
    (entry,) = [e for e in entry_points(group="mach.commands") if e.name == "serve"]
    assert entry.load() is launcher.main


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["no-such-checkpoint", "--streaming"], "neither a directory here nor"),
        (["EMPTY", "--streaming"], "the directory is empty"),
        (["UNKNOWN", "--streaming"], "model_type"),
        (["mach-pico", "--no-streaming"], "needs the axis-0 stacked layout, found sliced; --streaming works"),
        (["mach-pico", "--streaming", "--expert-cache-gb", "0.0001"], "raise --expert-cache-gb"),
        (["mach-pico", "--streaming", "--expert-cache-gb", "-1"], "must be a positive number"),
        (["mach-pico", "--streaming", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1:0"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_status_2(
    arguments: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, config in (("EMPTY", None), ("UNKNOWN", {"model_type": "other"})):
        (tmp_path / name).mkdir()
        if config is not None:
            (tmp_path / name / "config.json").write_text(json.dumps(config))
            (tmp_path / name / "tokenizer.json").write_text("{}")
    arguments = [str(tmp_path / a) if a in ("EMPTY", "UNKNOWN") else a for a in arguments]
    assert serve_command.main([*arguments, "--port", "0"]) == 2
    captured = capsys.readouterr()
    assert why in captured.err and captured.err.startswith("mach-serve: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_port_in_use_is_refused_before_the_model_is_loaded(run_serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run_serve("mach-pico", "--streaming", "--port", str(taken.getsockname()[1]))
    assert (done.returncode, done.stdout) == (2, "")
    assert "--port" in done.stderr and done.stderr.count("\n") == 1


def test_a_missing_native_reader_is_refused_unless_the_fallback_is_chosen(run_serve, tmp_path: Path) -> None:
    (tmp_path / "lme_mlx_pread_ext.py").write_text("raise ImportError('not built', name=__name__)\n")
    hidden = {"PYTHONPATH": str(tmp_path), "LME_FALLBACK_POLICY": "fail-fast"}
    done = run_serve("mach-pico", "--streaming", "--port", "0", **hidden)
    assert (done.returncode, done.stdout) == (2, "")
    assert "lme_mlx_pread_ext" in done.stderr and done.stderr.count("\n") == 1


def test_it_starts_serves_and_drains_on_sigterm(start_process) -> None:
    server = start_process(*USUAL, "--target-only", "--backend", "dflash", script=SLOW)
    assert server.lines[0].startswith("startup mode profile=production production_streaming_mode=streaming ")
    assert re.fullmatch(r"startup ready url=http://127\.0\.0\.1:\d+ model=mach-pico", server.lines[-1])
    with httpx.Client(base_url=server.url, timeout=60) as client:
        reason = client.get("/v1/capabilities").json()["serving"]["effective_decode_path_reason"]
        assert "--target-only" in reason
        chat = {**CHAT, "max_tokens": 300}
        with client.stream("POST", "/v1/chat/completions", json=chat) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.stdout.readline().startswith("shutdown draining open_requests=1 ")
            while (refused := client.get("/v1/models")).status_code != 503:
                assert refused.status_code == 200
            assert "retry-after" in refused.headers
            assert [line for line in lines if line][-1] == "data: [DONE]"
    status, stderr = server.end()
    assert status == 0
    assert "Traceback" not in stderr


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(start_process, second: signal.Signals) -> None:
    server = start_process(*USUAL, script=SLOW)
    chat = {**CHAT, "max_tokens": 1_000_000}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=chat, timeout=60) as response:
        next(response.iter_lines())
        server.process.send_signal(signal.SIGINT)
        assert server.process.stdout.readline().startswith("shutdown draining")
        assert server.process.poll() is None
        server.process.send_signal(second)
        assert server.process.wait(30) == -second


def test_a_server_whose_output_nobody_reads_any_more_still_ends(start_process) -> None:
    server = start_process(*USUAL)
    server.process.stdout.close()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0


def test_an_idle_server_ends_cleanly_and_its_port_is_free_again(start_process) -> None:
    server = start_process(*USUAL)
    with httpx.Client(base_url=server.url) as idle:  # a kept-alive connection does not hold it up
        idle.get("/v1/models")
        server.process.send_signal(signal.SIGTERM)
        status, stderr = server.end()
    assert status == 0
    assert "Traceback" not in stderr and "terminate" not in stderr
    with socket.create_server(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))):
        pass


@pytest.fixture
def start_loading(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a server on the Unix socket `s` that loads until there is a file `go`."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WAITING, "mach-pico", "--streaming", "--uds", "s", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, cwd=tmp_path, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        with process:
            if process.poll() is None:
                process.kill()


@pytest.fixture
def over_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually) -> Iterator[httpx.Client]:
    """A client of the socket `s`; waits until it can be connected to."""
    monkeypatch.chdir(tmp_path)  # the whole path may be too long for a socket

    def connects() -> bool:
        with socket.socket(socket.AF_UNIX) as knock:
            return knock.connect_ex("s") == 0

    with httpx.Client(transport=httpx.HTTPTransport(uds="s"), base_url="http://mach", timeout=60) as client:
        client.wait = lambda: eventually(connects)
        yield client


def test_while_the_model_loads_requests_get_503_and_the_ready_line_waits(
    start_loading, over_socket, tmp_path: Path
) -> None:
    process = start_loading("--log-format", "json")
    over_socket.wait()
    for path in ("/v1/models", "/v1/stats", "/metrics", "/nowhere"):
        answer = over_socket.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "loading")
        assert int(answer.headers["retry-after"]) > 0
    assert (
        over_socket.post("/v1/messages", content=b"x" * 100_000).json()["error"]["type"] == "overloaded_error"
    )
    health = over_socket.get("/health")
    assert (health.status_code, health.json()) == (503, {"status": "loading"})
    (tmp_path / "go").touch()
    lines = []
    while not (lines and lines[-1].startswith("startup ready")):
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()
    assert lines[0].startswith("startup mode ")
    assert lines[-1] == f"startup ready url=unix:{tmp_path / 's'} model=mach-pico\n"
    assert over_socket.get("/health").json() == {"status": "ok"}
    answer = over_socket.post("/v1/chat/completions", json={**CHAT, "stream": False, "max_tokens": 2})
    assert answer.json()["usage"]["completion_tokens"] == 2
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert not (tmp_path / "s").exists()
    told = [line for line in map(json.loads, stderr.splitlines()) if line["event"] == "request"]
    assert [line["status"] for line in told] == [503] * 6 + [200, 200]
    assert told[-1]["id"] == answer.headers["x-request-id"] and told[-1]["completion_tokens"] == 2


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_while_it_loads_ends_it_at_once(start_loading, over_socket, number, status) -> None:
    process = start_loading()
    over_socket.wait()
    assert over_socket.get("/health").status_code == 503
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in stderr and "startup ready" not in stderr
    # What it may have left is no hindrance.
    again = start_loading()
    over_socket.wait()
    again.kill()


def test_a_load_that_fails_while_clients_wait_is_one_line_and_status_2(
    start_loading, over_socket, tmp_path: Path
) -> None:
    process = start_loading("--expert-cache-gb", "0.0001")
    over_socket.wait()
    assert over_socket.get("/health").status_code == 503  # the connection stays open
    (tmp_path / "go").touch()
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (2, "")
    assert [line for line in stderr.splitlines() if not line.startswith("request ")][0].startswith(
        "mach-serve: "
    )
    assert "raise --expert-cache-gb" in stderr and "Traceback" not in stderr


def test_whoever_opens_it_to_others_without_a_key_is_warned(start_process, monkeypatch) -> None:
    open_to_all = start_process(*USUAL, "--host", "0.0.0.0")
    open_to_all.process.terminate()
    assert "WARNING: 0.0.0.0:0 can be reached from other machines" in open_to_all.end()[1]
    monkeypatch.setenv("MACH_API_KEY", "a-key")
    locked = start_process(*USUAL, "--host", "0.0.0.0")
    url = locked.url.replace("0.0.0.0", "127.0.0.1")
    assert httpx.get(f"{url}/v1/models").status_code == 401
    assert httpx.get(f"{url}/v1/models", headers={"x-api-key": "a-key", "host": "box"}).status_code == 200
    locked.process.terminate()
    status, stderr = locked.end()
    assert status == 0 and "WARNING" not in stderr and "a-key" not in stderr


def test_the_grace_period_is_bounded_by_its_flag(start_process) -> None:
    server = start_process(*USUAL, "--grace-seconds", "0.2", script=SLOW)
    chat = {**CHAT, "max_tokens": 1_000_000}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=chat, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.terminate()
        assert server.process.stdout.readline() == "shutdown draining open_requests=1 grace_seconds=0.2\n"
        assert "shutting_down" in [line for line in lines if line][-1]
    status, stderr = server.end()
    assert status == 0
    assert " status=200 " in stderr and " error=shutting_down" in stderr


def test_a_server_whose_log_nobody_reads_goes_on_answering(start_process) -> None:
    server = start_process(*USUAL)
    with httpx.Client(base_url=server.url) as client:
        for _ in range(1500):  # some 200 bytes of log each, and a pipe holds 65,536
            assert client.get("/v1/models", headers={"x-request-id": "x" * 128}).status_code == 200
    server.process.terminate()
    assert server.process.wait(60) == 0
