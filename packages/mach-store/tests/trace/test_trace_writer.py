import errno
import os
import signal
import subprocess
import sys
import time

import msgspec
import pytest

from mach_store.errors import TraceWriteError
from mach_store.trace import trace_blocks as blocks
from mach_store.trace import trace_writer
from mach_store.trace.trace_events import AnswerBegan, AnswerEnded
from mach_store.trace.trace_header import TraceEnding
from mach_store.trace.trace_writer import TraceWriter


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new.trace"


def test_a_trace_gets_its_name_when_it_is_finished_and_not_before(
    path, make_header, some_events, read
) -> None:
    writer = TraceWriter(str(path), make_header())
    for event in some_events:
        writer.add(event)
    assert os.listdir(path.parent) == ["new.trace.partial"]
    writer.finish()
    assert os.listdir(path.parent) == ["new.trace"]
    assert path.stat().st_size == writer.nbytes
    events, reader = read(path)
    assert len(events) == len(some_events)
    assert (reader.ending.ended, reader.ending.answers, reader.ending.passes) == ("finished", 2, 5)
    assert reader.ending.routes == 2 * (5 * 3 + 1 * 3 * 3 + 2)
    assert reader.loss == ""


def test_nothing_that_is_there_is_written_over(path, make_header) -> None:
    path.write_bytes(b"mine")
    with pytest.raises(TraceWriteError, match="new.trace: is there already: give another name"):
        TraceWriter(str(path), make_header())
    path.rename(f"{path}.partial")
    with pytest.raises(TraceWriteError, match="recording that runs or was broken off"):
        TraceWriter(str(path), make_header())
    assert (path.parent / "new.trace.partial").read_bytes() == b"mine"


def test_a_directory_that_is_not_there_is_named(path, make_header) -> None:
    with pytest.raises(TraceWriteError, match="nowhere/new.trace.partial: .*No such file or directory"):
        TraceWriter(str(path.parent / "nowhere" / "new.trace"), make_header())


def test_blocks_are_written_as_they_fill(path, make_header, make_pass, monkeypatch) -> None:
    monkeypatch.setattr(trace_writer, "BLOCK_BYTES", 200)
    header = make_header()
    writer = TraceWriter(str(path), header)
    before = writer.nbytes
    writer.add(AnswerBegan(1))
    for seed in range(14):
        writer.add(make_pass(header, 1, seed))  # 14 bytes each
    assert writer.nbytes > before
    writer.add(make_pass(header, 90, 99))  # more than a block
    writer.add(AnswerEnded(True))
    writer.finish()


def test_an_answers_end_flushes_what_has_waited_long(path, make_header, monkeypatch) -> None:
    monkeypatch.setattr(trace_writer, "BLOCK_SECONDS", 0.0)
    writer = TraceWriter(str(path), make_header())
    before = writer.nbytes
    writer.add(AnswerBegan(1))
    time.sleep(0.001)
    assert writer.nbytes == before
    writer.add(AnswerEnded(True))
    assert writer.nbytes > before
    writer.abandon()


@pytest.mark.parametrize("limit", [900, 1000, 1200, 2000, 5000])
def test_a_byte_limit_is_never_passed_and_what_fitted_is_whole(
    path, make_header, make_pass, monkeypatch, read, limit
) -> None:
    monkeypatch.setattr(trace_writer, "BLOCK_BYTES", 100)
    header = make_header()
    writer = TraceWriter(str(path), header, max_bytes=limit)
    writer.add(AnswerBegan(1))
    seed = 0
    while not writer.full:
        seed += 1
        writer.add(make_pass(header, 1, seed))
    writer.finish()
    assert path.stat().st_size == writer.nbytes <= limit
    events, reader = read(path)
    assert reader.ending.ended == "limit"
    assert reader.ending.passes == max(0, len(events) - 1) < seed


def test_a_limit_below_the_header_is_refused_and_leaves_nothing(path, make_header) -> None:
    with pytest.raises(TraceWriteError, match="a limit of 300 bytes does not hold the header"):
        TraceWriter(str(path), make_header(), max_bytes=300)
    assert os.listdir(path.parent) == []


def test_a_pass_larger_than_any_block_is_refused(path, make_header, make_pass, monkeypatch) -> None:
    header = make_header()
    writer = TraceWriter(str(path), header)
    monkeypatch.setattr(trace_writer.blocks, "MAX_PLAIN_BYTES", 100)
    with pytest.raises(TraceWriteError, match="a pass of 128 bytes .* smaller prefill chunk"):
        writer.add(make_pass(header, 20, 0))
    writer.abandon()


class FullDisk:
    """A file that takes so many bytes, some at a time, and then no more."""

    def __init__(self, path: str, room: int) -> None:
        self._file, self._room = open(path, "xb", buffering=0), room

    def write(self, data) -> int:
        count = min(len(data), self._room, 64)
        if not count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._room -= count
        return self._file.write(data[:count])

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()


@pytest.fixture
def whole(path, make_header, some_events):
    """Writes the events, a block each, on a disk with so much room; the writer."""

    def write(room: int) -> TraceWriter:
        writer = TraceWriter(str(path), make_header(), open_new=lambda name: FullDisk(name, room))
        try:
            for event in some_events:
                writer.add(event)
                writer.flush()
            writer.finish()
        except TraceWriteError:
            writer.abandon()
            raise
        return writer

    return write


def test_a_full_disk_at_any_byte_is_an_error_and_keeps_the_whole_blocks(
    path, whole, read, some_events, plain
) -> None:
    size = whole(1 << 20).nbytes
    path.unlink()
    partial = path.with_name(path.name + ".partial")
    told = set()
    for room in range(size):
        with pytest.raises(TraceWriteError, match=r"new.trace.partial: .*No space left on device"):
            whole(room)
        assert not path.exists()
        if not partial.exists():
            continue  # not even the header found room
        events, reader = read(partial)
        assert events == [plain(event) for event in some_events[: len(events)]]
        assert reader.loss
        told.add(len(events))
        partial.unlink()
    assert told == set(range(len(some_events) + 1))


CHILD = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from mach_store.errors import TraceWriteError
from mach_store.trace import trace_blocks as blocks
from mach_store.trace import trace_writer
from mach_store.trace.trace_events import AnswerBegan, ModelPass
from mach_store.trace.trace_header import TraceHeader
import msgspec, numpy as np
trace_writer.BLOCK_BYTES = 300
writer = trace_writer.TraceWriter(sys.argv[1], msgspec.json.decode(sys.argv[2], type=TraceHeader))
if sys.argv[3] != "0":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
writer.add(AnswerBegan(1))
random = np.random.default_rng(0)
try:
    for number in range(100_000):
        writer.add(ModelPass(False, [random.integers(0, 8, (1, 2)).astype(np.uint16) for _ in range(3)]))
        if number % 20 == 0:
            print(number, flush=True)
except TraceWriteError as error:
    print(error)
    sys.exit(7)
"""


def child(path, header, limit: int) -> subprocess.Popen:
    arguments = [str(path), msgspec.json.encode(header).decode(), str(limit)]
    return subprocess.Popen([sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, text=True)


def test_a_real_limit_on_the_files_size_is_an_error_and_keeps_the_whole_blocks(
    path, make_header, read
) -> None:
    with child(path, make_header(), 4001) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 7
    assert "the trace cannot be written (File too large)" in out
    partial = path.with_name(path.name + ".partial")
    assert partial.stat().st_size == 4001
    events, reader = read(partial)
    assert len(events) > 100
    assert "is cut off" in reader.loss


def test_a_killed_recording_keeps_all_but_its_last_block(path, make_header, read) -> None:
    with child(path, make_header(), 0) as process:
        assert process.stdout is not None
        told = 0
        for line in process.stdout:
            told = int(line)
            if told >= 400:
                break
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert process.returncode == -signal.SIGKILL
    events, reader = read(path.with_name(path.name + ".partial"))
    in_a_block = 300 // 14
    assert len(events) >= told - in_a_block
    assert reader.loss
    assert reader.ending is None


def test_the_longest_ending_fits_into_what_is_kept_free() -> None:
    most = (1 << 64) - 1
    longest = TraceEnding(ended="finished", answers=most, passes=most, routes=most)
    assert blocks.HEAD_BYTES + len(msgspec.json.encode(longest)) <= trace_writer.ENDING_BYTES
