import errno
import os
import threading
import time

import msgspec
import numpy as np
import pytest

from mach_decode.errors import GenerationCancelledError
from mach_decode.request import GenerationRequest
from mach_decode.trace_recorder import TraceRecorder
from mach_decode.trace_run import trace_header
from mach_store.errors import RoutesUnseenError, TraceWriteError
from mach_store.routed_pass import RoutedPass
from mach_store.trace import trace_queue, trace_writer
from mach_store.trace.trace_blocks import HEADER, MAGIC, pack_block
from mach_store.trace.trace_events import AnswerBegan, AnswerEnded, ModelPass
from mach_store.trace.trace_reader import TraceReader
from mach_store.trace.trace_writer import TraceWriter

PROMPT = tuple(range(100, 160))


class Spy:
    """Keeps what the recorder is told too."""

    def __init__(self) -> None:
        self.passes: list = []

    def answer_began(self, prompt_tokens) -> None: ...

    def routed(self, passes, *, prefill) -> None:
        self.passes += [(p.layer, np.sort(p.ids, axis=1).tolist()) for p in passes]

    def answer_ended(self, *, finished) -> None: ...


class NoRoom:
    """A file on a disk that becomes full after `room` bytes."""

    def __init__(self, path: str, room: int) -> None:
        self._file, self._room = open(path, "xb", buffering=0), room

    def write(self, data) -> int:
        if self._room < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._room -= len(data)
        return self._file.write(data)

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()


class Stalled(NoRoom):
    """A file on a disk that takes nothing while it is `stalled`, but for the header."""

    def __init__(self, path: str) -> None:
        super().__init__(path, 1 << 20)
        self.goes_on, self.writing = threading.Event(), threading.Event()
        self._begun = False

    def write(self, data) -> int:
        if self._begun:
            self.writing.set()
            self.goes_on.wait(60)
        self._begun = True
        return super().write(data)


def eventually(condition) -> None:
    """Wait until `condition` holds; fail when it does not come about."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)


def answer(engine, tokens=4, cancelled=lambda: False) -> list[int]:
    request = GenerationRequest(prompt=PROMPT, max_tokens=tokens)
    return [event.token for event in engine.generate(request, cancelled) if event.token is not None]


@pytest.fixture
def record(tmp_path):
    """A function (engine, …) → a recorder into tmp_path/run.trace.

    limit: bytes beyond the header that the trace may have; room: that the disk has.
    """

    def start(engine, *, limit=None, room=1 << 20, told=None) -> TraceRecorder:
        header = trace_header(engine.loaded, "a test")
        first = len(MAGIC) + len(pack_block(HEADER, 0, msgspec.json.encode(header)))
        writer = TraceWriter(
            str(tmp_path / "run.trace"),
            header,
            max_bytes=None if limit is None else first + trace_writer.ENDING_BYTES + limit,
            open_new=lambda path: NoRoom(path, first + room),
        )
        return TraceRecorder(engine.route_observers, writer, told)

    return start


def events_of(path) -> tuple[list, TraceReader]:
    with TraceReader(str(path)) as reader:
        return list(reader.events()), reader


def test_what_an_engine_does_is_what_the_trace_says(open_engine, record, tmp_path) -> None:
    engine, spy = open_engine(12, prefill_chunk=40), Spy()
    engine.route_observers.add(spy)
    recorder = record(engine)
    answer(engine, tokens=3)
    answer(engine, tokens=1)
    recorder.finish()
    recorder.finish()
    assert recorder.state == "finished"
    events, reader = events_of(tmp_path / "run.trace")
    shape = [(e.prefill, e.tokens, len(e.ids)) if isinstance(e, ModelPass) else e for e in events]
    prefill = [(True, 40, 3), (True, 19, 3)]
    assert shape == [
        AnswerBegan(60), *prefill, *[(False, 1, 3)] * 3, AnswerEnded(True),
        AnswerBegan(60), *prefill, (False, 1, 3), AnswerEnded(True),
    ]  # fmt: skip
    told = [
        (reader.header.layers[at], ids.tolist())
        for e in events if isinstance(e, ModelPass) for at, ids in enumerate(e.ids)
    ]  # fmt: skip
    assert told == spy.passes
    assert (reader.ending.answers, reader.ending.passes) == (2, 8)


@pytest.mark.parametrize("residency", ["streaming", "stacked", "bf16_streaming"])
def test_the_header_says_what_was_loaded(open_engine, stacked, record, tmp_path, residency, capsys) -> None:
    engine = open_engine(directory=stacked, expert_residency=residency)
    recorder = record(engine)
    answer(engine, tokens=1)
    recorder.finish()
    header = events_of(tmp_path / "run.trace")[1].header
    assert (header.architecture, header.checkpoint) == ("qwen3_moe", "stacked")
    assert (header.layers, header.experts, header.top_k, header.pools) == ([0, 1, 2], 8, 2, [0, 0, 0])
    assert header.run.residency == residency
    assert header.run.recorded_by == "a test"
    assert header.run.bank_slots == ([] if residency == "stacked" else [engine.store.slots])
    if residency == "streaming":
        assert header.slot_bytes[0] * header.run.bank_slots[0] == engine.store.nbytes
    capsys.readouterr()


def test_mlx_lms_own_model_is_refused(open_engine, stacked) -> None:
    engine = open_engine(directory=stacked, expert_residency="unswapped")
    with pytest.raises(RoutesUnseenError, match="--streaming or --no-streaming"):
        trace_header(engine.loaded, "a test")


def test_a_limit_ends_the_recording_and_no_answer(open_engine, record, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(trace_writer, "BLOCK_BYTES", 200)
    engine, told = open_engine(), []
    expected = answer(engine, tokens=40)
    recorder = record(engine, limit=300, told=told.append)
    assert answer(engine, tokens=40) == expected
    limit = recorder.as_dict()["limit_bytes"]
    eventually(lambda: told)
    assert told == [f"the trace has its {limit} bytes"]
    assert recorder.state == "limit"
    assert answer(engine, tokens=40) == expected
    assert not engine.route_observers.observed, "nobody observes any more"
    assert recorder.answers == 1
    recorder.finish()
    assert answer(engine, tokens=40) == expected
    events, reader = events_of(tmp_path / "run.trace")
    assert reader.ending.ended == "limit"
    assert 0 < reader.ending.passes < 40
    assert recorder.as_dict()["bytes"] == (tmp_path / "run.trace").stat().st_size <= limit


def test_a_full_disk_ends_the_recording_and_no_answer(open_engine, record, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(trace_writer, "BLOCK_BYTES", 200)
    engine, told = open_engine(), []
    expected = answer(engine, tokens=40)
    recorder = record(engine, room=300, told=told.append)
    assert answer(engine, tokens=40) == expected
    eventually(lambda: told)
    assert len(told) == 1
    assert "run.trace.partial: the trace cannot be written (No space left on device)" in told[0]
    assert (recorder.state, recorder.reason) == ("error", told[0])
    assert recorder.as_dict()["file"].endswith(".partial")
    recorder.finish()
    assert not engine.route_observers.observed
    events, reader = events_of(tmp_path / "run.trace.partial")
    assert len(events) > 3
    assert reader.loss


def test_a_disk_that_stalls_keeps_no_token_back(open_engine, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(trace_writer, "BLOCK_BYTES", 200)
    engine, disks, told = open_engine(), [], []
    expected = answer(engine, tokens=40)

    def open_new(path: str) -> Stalled:
        disks.append(Stalled(path))
        return disks[0]

    header = trace_header(engine.loaded, "a test")
    writer = TraceWriter(str(tmp_path / "run.trace"), header, open_new=open_new)
    recorder = TraceRecorder(engine.route_observers, writer, told.append)
    written = recorder.as_dict()["bytes"]
    assert answer(engine, tokens=40) == expected
    assert answer(engine, tokens=40) == expected
    assert disks[0].writing.wait(60)
    assert recorder.as_dict()["bytes"] == written, "answers have come, and nothing could be written"
    assert recorder.state == "recording"
    disks[0].goes_on.set()
    recorder.finish()
    assert told == []
    assert events_of(tmp_path / "run.trace")[1].ending.passes == 2 * (1 + 40) == recorder.as_dict()["passes"]


def test_a_disk_that_stalls_too_long_ends_the_recording_and_no_answer(
    open_engine, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(trace_writer, "BLOCK_BYTES", 200)
    monkeypatch.setattr(trace_queue, "MOST_WAITING_BYTES", 600)
    engine, disks, told = open_engine(), [], []
    expected = answer(engine, tokens=60)
    disk = disks.append
    header = trace_header(engine.loaded, "a test")
    writer = TraceWriter(
        str(tmp_path / "run.trace"), header, open_new=lambda path: disk(Stalled(path)) or disks[0]
    )
    recorder = TraceRecorder(engine.route_observers, writer, told.append)
    assert answer(engine, tokens=60) == expected
    assert answer(engine, tokens=60) == expected
    assert len(told) == 1
    assert "run.trace.partial: the disk is too slow for the trace: " in told[0]
    assert (recorder.state, recorder.reason) == ("error", told[0])
    assert not engine.route_observers.observed
    disks[0].goes_on.set()
    recorder.finish()
    ending = events_of(tmp_path / "run.trace")[1].ending
    assert ending.ended == "error" and 0 < ending.passes < 2 * (1 + 60)


def test_a_disk_that_is_full_at_the_end_is_told_to_who_ends_it(open_engine, record) -> None:
    engine = open_engine(12)
    recorder = record(engine, room=50)
    answer(engine)
    with pytest.raises(TraceWriteError, match="No space left"):
        recorder.finish()
    assert recorder.state == "error"


def test_an_answer_that_breaks_off_is_there_as_far_as_it_came(open_engine, record, tmp_path) -> None:
    engine = open_engine(6, prefill_chunk=8)
    recorder = record(engine)
    calls = iter([False] * 3 + [True] * 100)
    with pytest.raises(GenerationCancelledError):
        answer(engine, cancelled=lambda: next(calls))
    answer(engine, tokens=1)
    recorder.finish()
    events, _ = events_of(tmp_path / "run.trace")
    first = events[: events.index(AnswerEnded(False))]
    assert first[0] == AnswerBegan(60)
    (broken,) = first[1:]
    assert 1 <= len(broken.ids) < 3
    assert events[-1] == AnswerEnded(True)


def test_layers_out_of_turn_end_the_recording(open_engine, record, tmp_path) -> None:
    engine, told = open_engine(12), []
    recorder = record(engine, told=told.append)
    recorder.answer_began(1)
    recorder.routed([_routed(0), _routed(2)], prefill=False)
    assert told == ["layer 2 was computed out of turn"]
    assert recorder.state == "error"
    answer(engine)
    recorder.finish()
    events, reader = events_of(tmp_path / "run.trace")
    assert events == [AnswerBegan(1)]
    assert reader.ending.ended == "error"


def _routed(layer: int) -> RoutedPass:
    return RoutedPass(layer, np.zeros((1, 2), np.uint16))
