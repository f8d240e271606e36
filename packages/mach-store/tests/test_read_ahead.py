import threading
import time

import pytest

from mach_store import read_ahead
from mach_store.counters import LayerCounters
from mach_store.read_ahead import THREAD_NAME, DeferredReading, ReadAhead


@pytest.fixture
def ahead():
    threads = ReadAhead()
    yield threads
    threads.close()


def reading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


def test_a_batch_is_read_in_one_named_thread_and_counted_where_it_is_finished(ahead) -> None:
    assert reading_threads() == []
    seen = []

    def read(counters: LayerCounters) -> None:
        seen.append(threading.current_thread().name)
        counters.bytes_read, counters.read_seconds, counters.wait_seconds = 7, 100.0, 100.0

    counters = LayerCounters(bytes_read=1)
    for _ in range(3):
        ahead.begin(read).finish(counters)
    assert len(set(seen)) == len(reading_threads()) == 1
    assert seen[0].startswith(THREAD_NAME)
    assert (counters.bytes_read, counters.read_seconds) == (22, 300.0)
    assert 0 < counters.wait_seconds < 100, "what the reading thread calls waiting is not the caller's"


def test_the_time_that_the_caller_stands_still_is_what_counts_as_waiting(ahead) -> None:
    go, counters = threading.Event(), LayerCounters()
    reading = ahead.begin(lambda _: go.wait(10) and None)
    timer = threading.Timer(0.05, go.set)
    timer.start()
    began = time.perf_counter()
    reading.finish(counters)
    assert 0 < counters.wait_seconds <= time.perf_counter() - began
    timer.join()


def test_a_failure_is_raised_where_the_batch_is_finished_and_the_thread_goes_on(ahead) -> None:
    def fail(_: LayerCounters) -> None:
        raise OSError("no such disk")

    counters = LayerCounters()
    with pytest.raises(OSError, match="no such disk"):
        ahead.begin(fail).finish(counters)
    assert counters.bytes_read == 0 and counters.wait_seconds > 0
    ahead.begin(lambda counted: setattr(counted, "bytes_read", 5)).finish(counters)
    assert counters.bytes_read == 5


def test_dropping_waits_until_nothing_is_written_any_more_and_tells_of_no_failure(ahead) -> None:
    begun, go, ended = threading.Event(), threading.Event(), []

    def read(_: LayerCounters) -> None:
        begun.set()
        go.wait(10)
        ended.append(True)
        raise OSError("nobody hears of this")

    reading = ahead.begin(read)
    assert begun.wait(10)
    threading.Timer(0.02, go.set).start()
    reading.drop()
    assert ended == [True]


def test_closing_ends_the_thread_after_its_batch(ahead) -> None:
    ended = []
    ahead.begin(lambda _: (time.sleep(0.02), ended.append(True)) and None)
    ahead.close()
    assert ended == [True] and reading_threads() == []
    ahead.close()


def test_a_deferred_batch_is_read_by_whoever_finishes_it_and_by_nobody_who_drops_it() -> None:
    seen = []

    def read(counters: LayerCounters) -> None:
        seen.append(threading.current_thread())
        counters.wait_seconds += 3.0

    DeferredReading(read).drop()
    assert seen == []
    counters = LayerCounters()
    DeferredReading(read).finish(counters)
    assert seen == [threading.current_thread()]
    assert counters.wait_seconds == 3.0
    assert reading_threads() == []


@pytest.mark.parametrize("beside", [True, False], ids=["ahead", "deferred"])
def test_what_the_disk_gave_meanwhile_tells_where_a_batch_came_from(ahead, monkeypatch, beside) -> None:
    blocks = [5]
    monkeypatch.setattr(read_ahead, "_blocks_read", lambda: blocks[0])
    assert ahead.from_disk, "nothing is known yet"

    def read(more: int) -> None:
        def batch(_: LayerCounters) -> None:
            if blocks[0] is not None:
                blocks[0] += more

        ahead.begin(batch, ahead=beside).finish(LayerCounters())

    read(0)
    assert not ahead.from_disk
    read(3)
    assert ahead.from_disk
    read(0)
    assert not ahead.from_disk
    blocks[0] = None
    read(0)
    assert ahead.from_disk, "the system does not say"
