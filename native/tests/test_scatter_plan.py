import gc
import itertools
import os
import random
import signal
import threading
import zlib

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lme_mlx_pread_ext import ChecksumError, ReadError, ScatterPlan

SLOTS = 6


def banks_for(sizes, widen=None, slots=SLOTS):
    wide = widen or [False] * len(sizes)
    banks = [
        mx.zeros((slots, n // 2), mx.float32) if w else mx.zeros((slots, n), mx.uint8)
        for n, w in zip(sizes, wide, strict=True)
    ]
    mx.eval(banks)
    return banks


def plan_for(sizes, widen=None, slots=SLOTS):
    banks = banks_for(sizes, widen, slots)
    return ScatterPlan(banks, list(sizes), widen or [False] * len(sizes)), banks


def slot_bytes(banks, slot):
    return [np.array(bank)[slot].tobytes() for bank in banks]


def test_a_plan_tells_its_slots_and_record_bytes() -> None:
    plan, _ = plan_for([100, 28])
    assert (plan.slots, plan.record_bytes) == (SLOTS, 128)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("scattered", [False, True])
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_random_plans_equal_plain_reads(record_file, read_plainly, direct, scattered, data) -> None:
    sizes = data.draw(st.lists(st.integers(1, 3000).map(lambda n: 2 * n), min_size=1, max_size=9))
    widen = data.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    file = record_file(count=5, sizes=sizes, start=data.draw(st.integers(0, 9000)))
    slots = data.draw(st.lists(st.integers(0, SLOTS - 1), unique=True, max_size=5))
    numbers = [data.draw(st.integers(0, 4)) for _ in slots]
    plan, banks = plan_for(sizes, widen)

    fd = file.open_direct() if direct else os.dup(file.fd)
    offsets = (
        list(itertools.chain.from_iterable(file.segment_offsets(n) for n in numbers))
        if scattered
        else [file.offsets[n] for n in numbers]
    )
    count = plan.read(
        slots,
        [fd] * len(offsets),
        offsets,
        [file.crcs[n] for n in numbers],
        threads=data.draw(st.integers(1, 5)),
        direct=direct,
    )
    os.close(fd)

    assert count == len(slots) * file.record_bytes
    expected = {
        slot: read_plainly(file.records[n], sizes, widen) for slot, n in zip(slots, numbers, strict=True)
    }
    for slot in range(SLOTS):
        untouched = [bytes(n * (2 if w else 1)) for n, w in zip(sizes, widen, strict=True)]
        assert slot_bytes(banks, slot) == expected.get(slot, untouched)


@pytest.mark.parametrize("first", range(0, 65536, 16384))
def test_widening_is_exact_on_all_bfloat16_patterns(tmp_path, first) -> None:
    patterns = np.arange(first, first + 16384, dtype="<u2")
    path = tmp_path / "patterns"
    path.write_bytes(patterns.tobytes())
    bank = mx.zeros((2, 16384), mx.float32)
    mx.eval(bank)
    plan = ScatterPlan([bank], [patterns.nbytes], [True])
    with path.open("rb") as file:
        plan.read([1], [file.fileno()], [0], [zlib.crc32(patterns.tobytes())])
    got = np.array(bank.view(mx.uint32))
    np.testing.assert_array_equal(got[1], patterns.astype("<u4") << 16)
    np.testing.assert_array_equal(
        got[1], np.array(mx.array(patterns).view(mx.bfloat16).astype(mx.float32).view(mx.uint32))
    )
    assert not got[0].any()


@pytest.mark.parametrize("size", [2, 4, 62, 64, 66, 126, 128, 130, 1000])
def test_widening_in_place_is_exact_at_every_tail(tmp_path, size) -> None:
    data = os.urandom(size)
    (tmp_path / "f").write_bytes(data)
    plan, (bank,) = plan_for([size], [True], slots=1)
    with (tmp_path / "f").open("rb") as file:
        plan.read([0], [file.fileno()], [0])
    assert np.array(bank).tobytes() == (np.frombuffer(data, "<u2").astype("<u4") << 16).tobytes()


def test_more_segments_than_one_system_call_takes(record_file) -> None:
    sizes = [16] * 1500
    file = record_file(count=3, sizes=sizes)
    plan, banks = plan_for(sizes, slots=3)
    plan.read([2, 0, 1], [file.fd] * 3, file.offsets, file.crcs)
    assert b"".join(slot_bytes(banks, 2)) == file.records[0]


def test_direct_reads_larger_than_one_block_are_equal(record_file) -> None:
    sizes = [9_000_002, 12, 3_000_000]
    file = record_file(count=2, sizes=sizes, start=123)
    plan, banks = plan_for(sizes, slots=2)
    fd = file.open_direct()
    plan.read([1, 0], [fd] * 2, file.offsets, file.crcs, direct=True, threads=2)
    os.close(fd)
    assert b"".join(slot_bytes(banks, 1)) == file.records[0]
    assert b"".join(slot_bytes(banks, 0)) == file.records[1]


@pytest.mark.parametrize("direct", [False, True])
def test_a_short_file_names_the_job_and_the_segment(record_file, direct) -> None:
    file = record_file(count=3)
    plan, _ = plan_for(file.sizes)
    where = file.segment_offsets(2)
    os.truncate(file.path, where[3] + 1000)
    fd = file.open_direct() if direct else os.dup(file.fd)
    with pytest.raises(
        ReadError, match=r"job 2, segment 3: 1000 of 8192 bytes at offset .* file ended"
    ) as caught:
        plan.read([0, 1, 2], [fd] * 3, file.offsets, direct=direct)
    os.close(fd)
    error = caught.value
    assert isinstance(error, OSError)
    assert (error.job, error.segment, error.errno, error.offset, error.wanted, error.got) == (
        2,
        3,
        0,
        where[3],
        8192,
        1000,
    )


@pytest.mark.parametrize("direct", [False, True])
def test_a_read_that_begins_beyond_the_end_has_got_nothing(record_file, direct) -> None:
    file = record_file(count=1)
    plan, _ = plan_for(file.sizes)
    fd = file.open_direct() if direct else os.dup(file.fd)
    with pytest.raises(ReadError) as caught:
        plan.read([0], [fd], [1 << 40], direct=direct)
    os.close(fd)
    assert (caught.value.job, caught.value.segment, caught.value.got) == (0, 0, 0)


def test_the_first_bad_job_is_named_even_when_a_later_one_fails_sooner(record_file) -> None:
    file = record_file(count=4, sizes=[8 << 20])
    plan, _ = plan_for(file.sizes, slots=4)
    unreadable = os.open(file.path, os.O_WRONLY)
    fds = [file.fd, file.fd, unreadable, unreadable]
    crcs = [file.crcs[0], file.crcs[1] ^ 1, *file.crcs[2:]]
    for _ in range(10):
        with pytest.raises(ChecksumError) as caught:
            plan.read(range(4), fds, file.offsets, crcs, threads=4)
        assert caught.value.job == 1
    os.close(unreadable)


@pytest.mark.parametrize("direct", [False, True])
def test_a_flipped_byte_is_a_checksum_error(record_file, direct) -> None:
    file = record_file(count=3)
    plan, _ = plan_for(file.sizes)
    with file.path.open("r+b") as writable:
        writable.seek(file.offsets[1] + 5000)
        byte = writable.read(1)[0]
        writable.seek(file.offsets[1] + 5000)
        writable.write(bytes([byte ^ 4]))
    fd = file.open_direct() if direct else os.dup(file.fd)
    with pytest.raises(ChecksumError, match="job 1: .* export it again") as caught:
        plan.read([3, 4, 5], [fd] * 3, file.offsets, file.crcs, direct=direct)
    os.close(fd)
    assert isinstance(caught.value, ValueError)
    assert (caught.value.job, caught.value.expected) == (1, file.crcs[1])
    assert caught.value.actual == zlib.crc32(file.record(1))


def test_a_descriptor_that_cannot_be_read_says_what_the_system_said(record_file) -> None:
    file = record_file(count=1)
    plan, _ = plan_for(file.sizes)
    fd = os.open(file.path, os.O_WRONLY)
    with pytest.raises(ReadError, match="not open for reading") as caught:
        plan.read([0], [fd], [0])
    os.close(fd)
    assert caught.value.errno == 9


def test_an_unaligned_buffered_read_of_a_direct_descriptor_says_what_to_do(record_file) -> None:
    file = record_file(count=1)
    plan, _ = plan_for(file.sizes)
    fd = file.open_direct()
    with pytest.raises(ReadError, match="direct=True"):
        plan.read([0], [fd], [file.offsets[0] + 1])
    os.close(fd)


def test_bounds_are_checked_before_the_first_byte_is_written(record_file) -> None:
    file = record_file()
    plan, banks = plan_for(file.sizes)
    a, b = file.offsets[:2]
    good = {"slots": [0, 1], "fds": [file.fd] * 2, "offsets": [a, b]}
    bad = [
        ({"slots": [0, SLOTS]}, IndexError, r"slots\[1\] is 6.*0 to 5"),
        ({"slots": [-1, 0]}, IndexError, r"slots\[0\] is -1"),
        ({"slots": [0, 1 << 70]}, ValueError, r"slots\[1\]"),
        ({"slots": [3, 3]}, ValueError, "slot 3 is named twice"),
        ({"slots": [0]}, ValueError, "1 slots"),
        ({"fds": [file.fd]}, ValueError, "1 fds"),
        ({"fds": [file.fd, -1]}, ValueError, r"fds\[1\] is -1"),
        ({"fds": [file.fd, 1 << 31]}, ValueError, r"fds\[1\]"),
        ({"offsets": [a, -1]}, ValueError, r"offsets\[1\] is -1"),
        ({"offsets": [a, (1 << 63) - 10]}, ValueError, r"offsets\[1\]"),
        ({"offsets": [a, 1 << 63]}, ValueError, r"offsets\[1\]"),
        ({"offsets": [a, b, b]}, ValueError, "3 offsets"),
        ({"crcs": [1]}, ValueError, "1 crcs"),
        ({"crcs": [0, 1 << 32]}, ValueError, r"crcs\[1\]"),
        ({"crcs": [0, -1]}, ValueError, r"crcs\[1\]"),
        ({"threads": 0}, ValueError, "threads is 0"),
        ({"threads": 65}, ValueError, "threads is 65"),
        ({"slots": 3}, TypeError, "slots must be a sequence"),
        ({"slots": [0, 1.0]}, TypeError, "integer"),
    ]
    for change, kind, message in bad:
        with pytest.raises(kind, match=message):
            plan.read(**{**good, **change})
    assert all(not any(b"".join(slot_bytes(banks, slot))) for slot in range(SLOTS))


def test_an_empty_batch_reads_nothing() -> None:
    plan, _ = plan_for([8, 8])
    assert plan.read([], [], []) == 0
    assert plan.read([], [], [], []) == 0


def test_arrays_that_cannot_be_written_in_place_are_refused() -> None:
    bank = mx.zeros((4, 64), mx.uint8)
    lazy = mx.zeros((4, 64), mx.uint8)
    short = mx.zeros((3, 64), mx.uint8)
    mx.eval(bank, short)
    strided = bank[:, ::2]
    spread = mx.broadcast_to(bank[0], (4, 64))
    mx.eval(strided, spread)
    empty = mx.zeros((0, 4))
    scalar = mx.array(1)
    mx.eval(empty, scalar)
    for arrays, sizes, widen, message in [
        ([lazy], [64], [False], r"arrays\[0\] is not evaluated: call mx.eval"),
        ([strided], [32], [False], r"arrays\[0\] is not row-contiguous"),
        ([spread], [64], [False], r"arrays\[0\] is not row-contiguous"),
        ([empty], [16], [False], r"arrays\[0\] has no slots"),
        ([scalar], [4], [False], r"arrays\[0\] has no slots"),
        ([bank, short], [64, 64], [False] * 2, "has 3 slots and arrays"),
        ([bank, bank[1:3]], [64, 64], [False] * 2, "slots"),
        ([bank, bank], [64, 64], [False] * 2, r"arrays\[0\] and arrays\[1\] share memory"),
        ([bank], [63], [False], "64 bytes, but 63 bytes on disk"),
        ([bank], [64], [True], "widened, fill 128"),
        ([bank], [0], [False], "at least 1"),
        ([bank], [-64], [False], "at least 1"),
        ([bank], [64, 64], [False], "1 arrays, 2 nbytes"),
        ([bank], [64], [], "0 widen"),
        ([], [], [], "no segments"),
    ]:
        if message == "slots":
            mx.eval(arrays)
        with pytest.raises(ValueError, match=message):
            ScatterPlan(arrays, sizes, widen)
    with pytest.raises(TypeError, match=r"arrays\[1\] must be an mlx.core.array"):
        ScatterPlan([bank, np.zeros(4)], [64, 64], [False, False])
    with pytest.raises(ValueError, match="even number"):
        ScatterPlan([mx.array([[1, 2, 3]], mx.uint16)], [3], [True])


def test_the_plan_keeps_its_arrays_alive(record_file) -> None:
    file = record_file()
    plan, banks = plan_for(file.sizes)
    banks = [mx.array(bank) for bank in banks]  # other descriptors of the same data
    gc.collect()
    junk = [mx.ones((SLOTS, n), mx.uint8) for n in file.sizes for _ in range(20)]
    mx.eval(junk)
    plan.read([0], [file.fd], [file.offsets[0]], [file.crcs[0]])
    assert all(np.array(array).min() == 1 for array in junk)


def test_mlx_sees_the_bytes_that_were_read(record_file) -> None:
    file = record_file(count=2, sizes=[64])
    plan, (bank,) = plan_for([64])
    row = bank[3]  # a graph built before the read
    plan.read([3], [file.fd], [file.offsets[1]])
    assert bytes(np.array(row)) == file.records[1]


def test_two_plans_over_the_same_arrays_agree(record_file, read_plainly) -> None:
    file = record_file()
    banks = banks_for(file.sizes)
    plans = [ScatterPlan(banks, file.sizes, [False] * len(file.sizes)) for _ in range(2)]
    plans[0].read([0, 2], [file.fd] * 2, file.offsets[:2])
    plans[1].read([1, 3], [file.fd] * 2, file.offsets[:2])
    assert slot_bytes(banks, 0) == slot_bytes(banks, 1) == read_plainly(file.records[0], file.sizes)
    assert slot_bytes(banks, 2) == slot_bytes(banks, 3)


def test_four_threads_read_different_slots_of_one_plan(record_file, read_plainly) -> None:
    file = record_file(count=16, sizes=[40_000, 2, 10_000])
    plan, banks = plan_for(file.sizes, slots=16)
    expected = [read_plainly(record, file.sizes) for record in file.records]
    failures: list[object] = []
    views = [np.array(bank, copy=False) for bank in banks]

    def work(first: int) -> None:
        dice = random.Random(first)
        slots = range(first, first + 4)
        try:
            for _ in range(60):
                numbers = [dice.randrange(16) for _ in slots]
                plan.read(
                    slots,
                    [file.fd] * 4,
                    [file.offsets[n] for n in numbers],
                    [file.crcs[n] for n in numbers],
                    threads=3,
                )
                for slot, n in zip(slots, numbers, strict=True):
                    if [view[slot].tobytes() for view in views] != expected[n]:
                        failures.append((slot, n))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(4 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_signals_do_not_break_a_read(record_file) -> None:
    file = record_file(count=4, sizes=[4 << 20, 100])
    plan, banks = plan_for(file.sizes, slots=4)
    rang = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for _ in range(40):
            plan.read(range(4), [file.fd] * 4, file.offsets, file.crcs, threads=2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(rang) > 3
    assert b"".join(slot_bytes(banks, 3)) == file.records[3]
