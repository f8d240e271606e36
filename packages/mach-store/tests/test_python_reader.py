import os
import zlib

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lme_mlx_pread_ext import ScatterPlan
from mach_store.python_reader import PythonScatterPlan

SLOTS = 5
RECORDS = 6


def banks_for(sizes: list[int], widen: list[bool]) -> list[mx.array]:
    banks = [
        mx.zeros((SLOTS, n // 2), mx.float32 if wide else mx.uint16)
        for n, wide in zip(sizes, widen, strict=True)
    ]
    mx.eval(banks)
    return banks


def outcome(plan, *args, **options):
    """What a read returns or raises, in terms that both readers share."""
    try:
        return plan.read(*args, **options)
    except Exception as error:
        fields = ("job", "segment", "errno", "expected", "actual")
        kinds = [k.__name__ for k in (OSError, IndexError, ValueError, TypeError) if isinstance(error, k)]
        return kinds, {name: getattr(error, name) for name in fields if hasattr(error, name)}


def contents(banks: list[mx.array]) -> list[bytes]:
    return [np.array(bank).tobytes() for bank in banks]


@pytest.fixture
def records(tmp_path):
    """A function (record size, bytes before) → descriptor, offsets and checksums of random records."""
    fds = []

    def make(size: int, before: int):
        path = tmp_path / f"records{len(fds)}"
        raw = np.random.default_rng(size).bytes(before + RECORDS * size)
        path.write_bytes(raw)
        fds.append(os.open(path, os.O_RDONLY))
        offsets = [before + i * size for i in range(RECORDS)]
        return fds[-1], offsets, [zlib.crc32(raw[at : at + size]) for at in offsets]

    yield make
    for fd in fds:
        os.close(fd)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)
@given(data=st.data())
def test_both_readers_do_the_same_on_random_plans(records, data) -> None:
    sizes = data.draw(st.lists(st.integers(1, 300).map(lambda n: 2 * n), min_size=1, max_size=6))
    widen = data.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    fd, offsets, crcs = records(sum(sizes), data.draw(st.integers(0, 100)))
    chosen = data.draw(st.lists(st.integers(0, RECORDS - 1), max_size=SLOTS))
    slots = data.draw(st.permutations(range(SLOTS)))[: len(chosen)]
    places = [offsets[record] for record in chosen]
    if data.draw(st.booleans(), label="scattered") and len(sizes) > 1:
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        places = [place + start for place in places for start in starts]
    sums = [crcs[record] for record in chosen]
    given_crcs = data.draw(st.sampled_from([None, sums]))
    mine, theirs = banks_for(sizes, widen), banks_for(sizes, widen)
    plans = PythonScatterPlan(mine, sizes, widen), ScatterPlan(theirs, sizes, widen)
    assert plans[0].slots == plans[1].slots
    assert plans[0].record_bytes == plans[1].record_bytes
    read = [outcome(plan, slots, [fd] * len(places), places, given_crcs) for plan in plans]
    assert read[0] == read[1] == len(chosen) * sum(sizes)
    assert contents(mine) == contents(theirs)


FAULTS = {
    "a slot too high": dict(slots=[0, SLOTS]),
    "a negative slot": dict(slots=[0, -1]),
    "a slot named twice": dict(slots=[2, 2]),
    "too few offsets": dict(offsets=[0]),
    "too many descriptors": dict(fds=3),
    "a negative offset": dict(offsets=[8, -4]),
    "an offset beyond all files": dict(offsets=[8, (1 << 63) - 1]),
    "an offset behind the end": dict(offsets=[8, 1 << 40]),
    "a record cut off": dict(offsets=[8, "last half"]),
    "a descriptor that is none": dict(fds=-1),
    "a closed descriptor": dict(fds="closed"),
    "too few checksums": dict(crcs=[0]),
    "a wrong checksum": dict(crcs="second wrong"),
    "no thread": dict(threads=0),
    "too many threads": dict(threads=65),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_both_readers_refuse_alike(records, fault) -> None:
    sizes, widen = [40, 24, 6], [False, True, False]
    fd, offsets, crcs = records(sum(sizes), 8)
    args = {"slots": [1, 3], "fds": 2, "offsets": offsets[:2], "crcs": crcs[:2], "threads": 1}
    args |= FAULTS[fault]
    if args["offsets"][-1] == "last half":
        args["offsets"] = [offsets[0], offsets[-1] + 50]
        args["crcs"] = None
    if args["crcs"] == "second wrong":
        args["crcs"] = [crcs[0], crcs[1] ^ 1]
    if args["fds"] == "closed":
        descriptor, count = os.dup(fd), 2
        os.close(descriptor)
    elif args["fds"] == -1:
        descriptor, count = -1, 2
    else:
        descriptor, count = fd, args["fds"]
    results, banks = [], []
    for kind in (PythonScatterPlan, ScatterPlan):
        banks.append(banks_for(sizes, widen))
        plan = kind(banks[-1], sizes, widen)
        results.append(
            outcome(
                plan,
                args["slots"],
                [descriptor] * count,
                args["offsets"],
                args["crcs"],
                threads=args["threads"],
            )
        )
    assert isinstance(results[0], tuple), "the fault is one"
    assert results[0] == results[1]
    if "OSError" not in results[0][0] and "checksum" not in fault:
        assert not any(any(part) for part in contents(banks[0])), "nothing is written before the check"


def test_both_readers_refuse_arrays_that_do_not_fit() -> None:
    bank = mx.zeros((3, 4), mx.uint16)
    other = mx.zeros((2, 4), mx.uint16)
    mx.eval(bank, other)
    for arrays, nbytes, widen in (
        ([bank], [6], [False]),
        ([bank], [8], [True]),
        ([bank, other], [8, 8], [False, False]),
        ([bank], [8, 8], [False]),
        ([], [], []),
    ):
        for kind in (PythonScatterPlan, ScatterPlan):
            with pytest.raises(ValueError):
                kind(arrays, nbytes, widen)


def test_bfloat16_becomes_the_same_float32_and_bfloat16_arrays_take_their_bytes(records) -> None:
    sizes = [64, 64]
    fd, offsets, _ = records(128, 0)
    arrays = [mx.zeros((2, 32), mx.float32), mx.zeros((2, 32), mx.bfloat16)]
    mx.eval(arrays)
    PythonScatterPlan(arrays, sizes, [True, False]).read([1], [fd], [offsets[2]])
    raw = os.pread(fd, 128, offsets[2])
    wide = np.frombuffer(raw[:64], np.uint16).astype(np.uint32) << 16
    assert np.array_equal(np.array(arrays[0][1]).view(np.uint32), wide)
    assert np.array(arrays[1].view(mx.uint16))[1].tobytes() == raw[64:]
