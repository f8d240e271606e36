import errno
import os
import signal
import subprocess
import sys
import threading
import time

import msgspec
import pytest

from mach_store.errors import TraceWriteError
from mach_store.trace import trace_queue, trace_writer
from mach_store.trace.trace_events import AnswerBegan, AnswerEnded
from mach_store.trace.trace_queue import TraceQueue
from mach_store.trace.trace_writer import TraceWriter


class Disk:
    """A file whose writes, after the first one, wait until `goes_on`, and then fail with `error`."""

    def __init__(self, path: str, error: int = 0) -> None:
        self._file, self._error, self.writes = open(path, "xb", buffering=0), error, 0
        self.goes_on, self.writing = threading.Event(), threading.Event()

    def write(self, data) -> int:
        self.writes += 1
        if self.writes > 1:
            self.writing.set()
            assert self.goes_on.wait(60)
            if self._error:
                raise OSError(self._error, os.strerror(self._error))
        return self._file.write(data)

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new.trace"


@pytest.fixture
def queue_on(path, make_header, monkeypatch):
    """A function (error) → a queue, the disk below it, and what it tells."""
    monkeypatch.setattr(trace_writer, "BLOCK_BYTES", 100)

    def make(error: int = 0, **options) -> tuple[TraceQueue, Disk, list[str]]:
        disks: list[Disk] = []

        def open_new(name: str) -> Disk:
            disks.append(Disk(name, error))
            return disks[0]

        told: list[str] = []
        writer = TraceWriter(str(path), make_header(), open_new=open_new, **options)
        return TraceQueue(writer, told.append), disks[0], told

    return make


def passes(queue, make_pass, count: int) -> None:
    queue.add(AnswerBegan(1))
    for seed in range(count):
        queue.add(make_pass(queue.writer.header, 1, seed))  # 14 bytes each
    queue.add(AnswerEnded(True))


def test_what_is_handed_over_is_what_the_trace_says(queue_on, path, some_events, read, plain) -> None:
    queue, disk, told = queue_on()
    disk.goes_on.set()
    for event in some_events:
        queue.add(event)
    assert queue.state == "recording"
    queue.finish()
    queue.finish()
    assert (queue.state, queue.reason, told) == ("finished", "", [])
    events, reader = read(path)
    assert events == [plain(event) for event in some_events]
    assert reader.ending.ended == "finished"


def test_who_hands_over_does_not_wait_for_the_disk(queue_on, make_pass, path, read) -> None:
    queue, disk, told = queue_on()
    passes(queue, make_pass, 100)
    assert disk.writing.wait(60)
    passes(queue, make_pass, 100)
    assert (disk.writes, queue.state, told) == (2, "recording", [])
    disk.goes_on.set()
    queue.finish()
    assert len(read(path)[0]) == 204


def test_a_disk_too_slow_for_what_comes_ends_it_and_what_was_taken_is_kept(
    queue_on, make_pass, path, read, monkeypatch
) -> None:
    monkeypatch.setattr(trace_queue, "MOST_WAITING_BYTES", 1000)
    queue, disk, told = queue_on()
    passes(queue, make_pass, 500)
    assert (queue.state, told) == ("error", [queue.reason])
    assert f"{path}.partial: the disk is too slow for the trace: " in queue.reason
    passes(queue, make_pass, 500)
    assert len(told) == 1
    disk.goes_on.set()
    queue.finish()
    assert (queue.state, queue.writer.finished) == ("error", True)
    events, reader = read(path)
    assert 1000 // 14 <= len(events) <= 1400 // 14
    assert reader.ending.ended == "error"


def test_a_single_pass_beyond_the_bound_is_taken(queue_on, make_pass, path, read, monkeypatch) -> None:
    monkeypatch.setattr(trace_queue, "MOST_WAITING_BYTES", 50)
    queue, disk, _ = queue_on()
    queue.add(AnswerBegan(400))
    queue.add(make_pass(queue.writer.header, 400, 1))
    assert queue.state == "recording"
    disk.goes_on.set()
    queue.finish()
    assert len(read(path)[0]) == 2


def test_a_full_disk_ends_it_by_itself_with_one_word(queue_on, make_pass, path) -> None:
    queue, disk, told = queue_on(errno.ENOSPC)
    disk.goes_on.set()
    passes(queue, make_pass, 50)
    deadline = time.monotonic() + 60
    while not told:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    reason = f"{path}.partial: the trace cannot be written (No space left on device)"
    assert (queue.state, queue.reason, told) == ("error", reason, [reason])
    passes(queue, make_pass, 50)
    queue.finish()
    assert disk.writes == 2, "after an error nothing more is written"
    assert not path.exists()


def test_a_disk_that_refuses_at_the_end_is_told_to_who_ends_it(queue_on, make_pass) -> None:
    queue, disk, told = queue_on(errno.EIO)
    passes(queue, make_pass, 3)  # less than a block: the disk is asked at the end
    disk.goes_on.set()
    with pytest.raises(TraceWriteError, match="cannot be written .Input/output error"):
        queue.finish()
    assert (queue.state, told) == ("error", [])


def test_a_limit_ends_it_by_itself(queue_on, make_pass, path, read) -> None:
    queue, disk, told = queue_on(max_bytes=1000)
    disk.goes_on.set()
    while queue.state == "recording":
        passes(queue, make_pass, 20)
    queue.finish()
    assert (queue.state, told) == ("limit", ["the trace has its 1000 bytes"])
    assert path.stat().st_size <= 1000
    assert read(path)[1].ending.ended == "limit"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_fails_says_so(queue_on, make_pass, monkeypatch) -> None:
    queue, disk, told = queue_on()
    monkeypatch.setattr(queue.writer, "add", lambda event: 1 / 0)
    passes(queue, make_pass, 3)
    queue._thread.join()
    assert queue.state == "error"
    assert "the thread that writes the trace failed: ZeroDivisionError" in queue.reason
    assert told == [queue.reason]


def test_what_was_begun_by_mistake_leaves_nothing(queue_on, path) -> None:
    queue, _, _ = queue_on()
    queue.discard()
    assert os.listdir(path.parent) == []


CHILD = """
import sys, msgspec, numpy as np
from mach_store.trace import trace_writer
from mach_store.trace.trace_events import AnswerBegan, AnswerEnded, ModelPass
from mach_store.trace.trace_header import TraceHeader
from mach_store.trace.trace_queue import TraceQueue
trace_writer.BLOCK_BYTES = 300
writer = trace_writer.TraceWriter(sys.argv[1], msgspec.json.decode(sys.argv[2], type=TraceHeader))
queue = TraceQueue(writer)
queue.add(AnswerBegan(1))
random = np.random.default_rng(0)
while True:
    queue.add(ModelPass(False, [random.integers(0, 8, (1, 2)).astype(np.uint16) for _ in range(3)]))
    print(writer.nbytes, flush=True)
"""


def test_a_killed_process_leaves_all_that_was_said_to_be_written(path, make_header, read) -> None:
    header = msgspec.json.encode(make_header()).decode()
    command = [sys.executable, "-c", CHILD, str(path), header]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = first = int(process.stdout.readline())
        for line in process.stdout:
            said = int(line)
            if said > first + 5000:
                break
        process.send_signal(signal.SIGKILL)
    partial = path.with_name(path.name + ".partial")
    assert partial.stat().st_size >= said
    with partial.open("r+b") as file:
        file.truncate(said)  # no more than was said
    events, reader = read(partial)
    assert len(events) > 300
    assert "is cut off" not in reader.loss
