import logging
import os
import signal

import httpx
import pytest

from mach_decode.engine import Engine, EngineConfig
from mach_server.inference_service import InferenceService
from mach_server.limits import Limits
from mach_server.trace_recording import TraceRecording
from mach_store.errors import RoutesUnseenError, TraceWriteError
from mach_store.trace import trace_writer
from mach_store.trace.trace_events import AnswerBegan, AnswerEnded, ModelPass
from mach_store.trace.trace_reader import TraceReader

BODY = {"model": "mach-pico", "messages": [{"role": "user", "content": "def f(x):"}], "temperature": 0}


def events_of(path) -> tuple[list, TraceReader]:
    with TraceReader(str(path)) as reader:
        return list(reader.events()), reader


@pytest.fixture
def serve(start_server, tmp_path):
    """A function (limit in bytes) → a server that records into tmp_path/run.trace."""

    def start(max_bytes: int = 1 << 20, **fields):
        recording = TraceRecording(str(tmp_path / "run.trace"), max_bytes)
        return start_server(gb=0.006, recording=recording, **fields)

    return start


def report(server):
    return server.client.get("/cache/stats").json()["trace_recording"]


def test_every_answer_is_recorded_and_the_trace_gets_its_name_at_the_end(serve, tmp_path) -> None:
    server = serve()
    path = tmp_path / "run.trace"
    before = report(server)
    assert (before["state"], before["answers"], before["reason"]) == ("recording", 0, None)
    assert before["file"] == f"{path}.partial"
    usages = [server.chat(max_tokens=n, temperature=0).json()["usage"] for n in (3, 5)]
    told = report(server)
    assert (told["answers"], told["limit_bytes"]) == (2, 1 << 20)
    assert not path.exists()
    server.stop()
    events, reader = events_of(path)
    assert [e.prompt_tokens for e in events if isinstance(e, AnswerBegan)] == [
        usage["prompt_tokens"] for usage in usages
    ]
    assert [e for e in events if isinstance(e, AnswerEnded)] == [AnswerEnded(True)] * 2
    assert sum(isinstance(e, ModelPass) and not e.prefill for e in events) == 8
    assert reader.header.run.recorded_by == "mach-serve"
    assert reader.ending.passes == server.service.recording.as_dict()["passes"] >= told["passes"]


def test_a_server_that_records_nothing_says_so(server) -> None:
    assert report(server) is None


def test_recording_changes_no_answer(server, serve) -> None:
    assert serve().text(max_tokens=20, temperature=0) == server.text(max_tokens=20, temperature=0)


def test_the_limit_ends_the_recording_with_a_log_line_and_no_answer(
    serve, server, tmp_path, caplog, monkeypatch, eventually
) -> None:
    monkeypatch.setattr(trace_writer, "BLOCK_BYTES", 500)
    recording = serve(1300)
    with caplog.at_level(logging.WARNING, "mach.server"):
        text = recording.text(max_tokens=150, temperature=0)
        eventually(lambda: "the recording of routes has ended" in caplog.text)
    assert text == server.text(max_tokens=150, temperature=0)
    assert "the recording of routes has ended: the trace has its 1300 bytes" in caplog.text
    told = report(recording)
    assert (told["state"], told["reason"]) == ("limit", "the trace has its 1300 bytes")
    assert told["file"] == str(tmp_path / "run.trace")
    assert (tmp_path / "run.trace").stat().st_size == told["bytes"] <= 1300
    recording.stop()
    assert events_of(tmp_path / "run.trace")[1].ending.ended == "limit"


def test_a_full_disk_ends_the_recording_with_a_log_line_and_no_answer(
    serve, server, tmp_path, caplog, monkeypatch, eventually
) -> None:
    monkeypatch.setattr(trace_writer, "BLOCK_BYTES", 500)
    recording = serve()
    writer = recording.service.recording._recorder._queue.writer
    whole = writer._file

    class Full:
        def write(self, data) -> int:
            raise OSError(28, os.strerror(28))

        def close(self) -> None:
            whole.close()

    writer._file = Full()
    with caplog.at_level(logging.WARNING, "mach.server"):
        text = recording.text(max_tokens=60, temperature=0)
        eventually(lambda: "the recording of routes has ended" in caplog.text)
    assert text == server.text(max_tokens=60, temperature=0)
    assert "the trace cannot be written (No space left on device)" in caplog.text
    told = report(recording)
    assert told["state"] == "error"
    assert "No space left" in told["reason"]
    assert recording.chat(max_tokens=2).status_code == 200
    recording.stop()
    assert "did not come to its end" in events_of(tmp_path / "run.trace.partial")[1].loss


def test_a_disk_that_is_full_at_the_end_is_logged(serve, caplog, monkeypatch) -> None:
    recording = serve()
    recording.text(max_tokens=2)

    def fail(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(trace_writer.os, "fsync", fail)
    with caplog.at_level(logging.WARNING, "mach.server"):
        recording.stop()
    assert "No space left on device" in caplog.text


def test_a_client_that_leaves_leaves_an_unfinished_answer(serve, tmp_path, eventually) -> None:
    server = serve()
    with server.stream(max_tokens=1500) as events:
        next(events)
    eventually(lambda: server.stats()["running"] is None)
    server.stop()
    events = events_of(tmp_path / "run.trace")[0]
    assert events[-1] == AnswerEnded(False)


def test_a_name_that_is_taken_is_refused_before_anything_is_loaded(tmp_path) -> None:
    (tmp_path / "a.trace").touch()
    (tmp_path / "b.trace.partial").touch()
    with pytest.raises(TraceWriteError, match="a.trace: is there already"):
        TraceRecording(str(tmp_path / "a.trace"), 1 << 20)
    with pytest.raises(TraceWriteError, match="b.trace.partial: is there already, from a recording"):
        TraceRecording(str(tmp_path / "b.trace"), 1 << 20)


def test_in_a_directory_it_finds_a_name_of_its_own(start_server, tmp_path) -> None:
    server = start_server(recording=TraceRecording(str(tmp_path), 1 << 20))
    server.text(max_tokens=1)
    server.stop()
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("mach-serve-") and path.suffix == ".trace"
    assert events_of(path)[1].ending.answers == 1


class Freed(Engine):
    closed = 0

    def close(self) -> None:
        Freed.closed += 1
        super().close()


def test_a_recording_that_cannot_begin_frees_the_engine(pico, tmp_path) -> None:
    recording = TraceRecording(str(tmp_path / "nowhere" / "x.trace"), 1 << 20)
    config = EngineConfig(checkpoint=str(pico))
    service = InferenceService(config, Limits(), recording=recording, engine_class=Freed)
    with pytest.raises(TraceWriteError, match="No such file or directory"):
        service.start()
    assert Freed.closed == 1
    assert recording.as_dict() is None
    recording.finish()


def test_mlx_lms_own_model_cannot_be_recorded(stacked, tmp_path) -> None:
    config = EngineConfig(checkpoint=str(stacked), expert_residency="unswapped")
    recording = TraceRecording(str(tmp_path / "x.trace"), 1 << 20)
    with pytest.raises(RoutesUnseenError):
        InferenceService(config, Limits(), recording=recording).start()
    assert list(tmp_path.iterdir()) == []


def test_the_flag_records_until_sigterm(start_process, tmp_path) -> None:
    path = tmp_path / "served.trace"
    arguments = ("mach-pico", "--streaming", "--port", "0", "--record-trace", str(path))
    server = start_process(*arguments, "--record-trace-mb", "5")
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={**BODY, "max_tokens": 4}, timeout=60)
    assert answer.status_code == 200
    server.process.send_signal(signal.SIGTERM)
    assert server.end()[0] == 0
    events, reader = events_of(path)
    assert reader.ending.answers == 1
    assert events[-1] == AnswerEnded(True)


def test_a_killed_server_leaves_a_trace_that_can_be_read(start_process, tmp_path) -> None:
    path = tmp_path / "served.trace"
    server = start_process("mach-pico", "--streaming", "--port", "0", "--record-trace", str(path))
    server.process.kill()
    server.end()
    events, reader = events_of(f"{path}.partial")
    assert events == []
    assert "did not come to its end" in reader.loss


def test_a_taken_name_is_refused_at_the_start(run_serve, tmp_path) -> None:
    path = tmp_path / "taken.trace"
    path.touch()
    run = run_serve("mach-pico", "--streaming", "--port", "0", "--record-trace", str(path))
    assert run.returncode == 2
    assert run.stderr == f"mach-serve: {path}: is there already: give another name\n"
