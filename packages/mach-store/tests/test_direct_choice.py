import errno
import os
import sys
from contextlib import closing

import mlx.core as mx
import pytest

from mach_store import direct_choice
from mach_store.bank_form import StoredForm
from mach_store.direct_choice import NOTHING_STREAMED, asked_choice, choose_direct, judged
from mach_store.errors import ExpertReadError
from mach_store.scatter_reader import python_twin
from mach_store.sidecar.sidecar_source import SidecarSource

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the page cache cannot be emptied here")


@pytest.fixture
def source(checkpoints):
    with closing(SidecarSource(str(checkpoints.engine() / "expert_sidecar"))) as opened:
        yield opened


def choose(source, reader, *, bank: int = 0, left: int = 0):
    return choose_direct(source, reader, StoredForm(mx.float32, reader), bank_bytes=bank, left_bytes=left)


def test_what_is_asked_for_is_chosen() -> None:
    assert asked_choice(True)[:3] == (True, "1", "asked")
    assert asked_choice(False)[:3] == (False, "0", "asked")
    assert not NOTHING_STREAMED.direct


def test_slices_and_the_python_reader_are_buffered(schema, file_source, source, native_reader) -> None:
    assert choose(file_source({0: schema()}, 4), native_reader)[:3] == (False, "auto", "slices")
    assert choose(source, python_twin())[:3] == (False, "auto", "python-reader")


def test_a_whole_bank_is_buffered(source, native_reader) -> None:
    assert choose(source, native_reader, bank=1 << 40).code == "whole-bank"


def test_buffered_is_chosen_when_the_page_cache_can_hold_every_expert(source, native_reader) -> None:
    enough = int(source.layout.record_bytes_total / direct_choice.PAGE_CACHE_SHARE) + 1
    chosen = choose(source, native_reader, left=enough)
    assert (chosen.direct, chosen.code) == (False, "page-cache-holds-all")
    assert "the page cache can hold all experts" in chosen.reason


@on_linux
def test_else_both_are_measured(source, native_reader, record_direct) -> None:
    chosen = choose(source, native_reader, left=source.layout.record_bytes_total)
    if not record_direct:
        assert chosen.code == "no-direct-reads"
        return
    assert chosen.code == "measured"
    assert chosen.direct_rate is not None and chosen.buffered_rate is not None
    assert chosen.direct == (chosen.direct_rate >= direct_choice.TIE * chosen.buffered_rate)
    assert "GB/s direct" in chosen.reason
    assert chosen.as_dict()["measured_direct_bytes_per_second"] == chosen.direct_rate


@pytest.fixture
def record_direct(source) -> bool:
    """Whether the file system under the test folder has direct reads."""
    try:
        source.direct_twin().close()
    except OSError:
        return False
    return True


@on_linux
@pytest.mark.parametrize("when", ["open", "read"])
def test_a_file_system_without_direct_reads_is_buffered_and_says_so(
    source, native_reader, monkeypatch, when
) -> None:
    if when == "open":
        real = os.open

        def refuse(path, flags, *rest, **options):
            if flags & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument", path)
            return real(path, flags, *rest, **options)

        monkeypatch.setattr(os, "open", refuse)
    else:
        monkeypatch.setattr(direct_choice, "_rates", _invalid)
    chosen = choose(source, native_reader)
    assert (chosen.direct, chosen.code) == (False, "no-direct-reads")
    assert "this file system has no direct reads (Invalid argument)" in chosen.reason


def _invalid(*_: object):
    error = ExpertReadError("cannot be read", path="x", layer=0, expert=0)
    raise error from OSError(errno.EINVAL, "Invalid argument")


@on_linux
def test_a_read_that_fails_otherwise_is_not_hidden(source, native_reader, monkeypatch) -> None:
    def broken(*_: object):
        raise ExpertReadError("gone", path="x", layer=0, expert=0) from OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(direct_choice, "_rates", broken)
    with pytest.raises(ExpertReadError, match="gone"):
        choose(source, native_reader)


def test_where_nothing_can_be_measured_facts_decide(source, native_reader, monkeypatch) -> None:
    monkeypatch.setattr(direct_choice.sys, "platform", "darwin")
    chosen = choose(source, native_reader)
    assert (chosen.direct, chosen.code) == (True, "not-measured")


@pytest.mark.parametrize(
    ("direct", "buffered", "wins"), [(1.0e9, 1.0e9, True), (0.96e9, 1.0e9, True), (0.9e9, 1.0e9, False)]
)
def test_direct_reads_win_ties(direct, buffered, wins) -> None:
    chosen = judged(direct, buffered, "no room")
    assert chosen.direct is wins
    assert chosen.reason.startswith("no room, and as measured ")
    assert (chosen.way == "directly") is wins


@on_linux
def test_a_measurement_is_bounded(monkeypatch) -> None:
    calls = []

    def slow(layer, experts):
        calls.append(layer)
        clock[0] += 1.0
        return 100

    clock = [0.0]
    monkeypatch.setattr(direct_choice.time, "perf_counter", lambda: clock[0])
    batches = direct_choice._batches([0, 1, 2], 64, 8)
    assert direct_choice._rates(slow, slow, batches) == (100.0, 100.0)
    assert len(calls) == 2
    records = [(layer, e) for layer, experts in direct_choice._batches([0, 1, 2], 64, 8) for e in experts]
    assert len(records) == len(set(records)) == 2 * direct_choice.SAMPLE_RECORDS
