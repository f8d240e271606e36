"""Passes that look experts up and read them by themselves: results, log, failures, marks, waits, threads.

Who leaves a full pool is tested in packages/mach-store, beside the policies that decide it.
"""

import ast
import gc
import os
import subprocess
import sys
import textwrap
import threading
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

import lme_expert_stream
from lme_cpu_kernels import ExpertProduct
from lme_expert_stream import ExpertStream, _ext

pytestmark = pytest.mark.usefixtures("on_the_cpu")

EXPERTS, HIDDEN, WIDTH = 8, 16, 8
SHAPES = ((WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH))
SIZES = [4 * rows * columns for rows, columns in SHAPES]
RECORD = sum(SIZES)
EBADF = 9
ORDER: dict[str, Any] = {"memories": [], "by_distance": False}
"""What a pool is told of who leaves it."""


class Told(NamedTuple):
    """What a pass says of itself."""

    layer: int
    mark: int
    hits: list[int]
    arrivals: list[tuple[int, int, int, bool]]
    routes: list[list[int]]
    nbytes: int
    read_seconds: float
    wait_seconds: float


class Bank:
    """One pool and its layers over a file of random experts, the same in every layer.

    The only one here that knows how slots are handed out and how the log is laid out.
    """

    def __init__(
        self, path: Path, slots: int, *, layers=1, threads=2, direct=False, scattered=False, checked=True
    ):
        dice = np.random.default_rng(7)
        self.matrices = [dice.normal(0, 0.3, (EXPERTS, *shape)).astype(np.float32) for shape in SHAPES]
        self.path, self.stride = path, 4096
        with path.open("wb") as file:
            for expert in range(EXPERTS):
                record = b"".join(matrix[expert].tobytes() for matrix in self.matrices)
                file.write(record.ljust(self.stride, b"\0"))
        self.fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
        self.arrays = [mx.zeros((slots, *shape)) for shape in SHAPES]
        mx.eval(self.arrays)
        self.slots = slots
        self.stream = ExpertStream(threads=threads, direct=direct)
        self.pool = self.stream.add_pool(self.arrays, SIZES, [False] * 3, **ORDER)
        places = self.places(scattered)
        for layer in range(layers):
            number, first = self.stream.add_layer(
                self.pool, EXPERTS, [self.fd] * len(places), places, self.crcs() if checked else None
            )
            assert (number, first) == (layer, layer * EXPERTS)
        self.layers = [self.stream.layer(number, self.product()) for number in range(layers)]
        self.offer(range(slots))

    def places(self, scattered: bool = False) -> list[int]:
        starts = np.cumsum([0, *SIZES[:-1]]).tolist() if scattered else [0]
        return [expert * self.stride + start for expert in range(EXPERTS) for start in starts]

    def crcs(self) -> list[int]:
        return [
            zlib.crc32(b"".join(matrix[expert].tobytes() for matrix in self.matrices))
            for expert in range(EXPERTS)
        ]

    def product(self) -> ExpertProduct:
        gate, up, down = ({"weight": array} for array in self.arrays)
        return ExpertProduct(gate, up, down, (None, None, None), activation="swiglu", threads=1)

    def offer(self, slots) -> None:
        """Passes may take these, which are empty."""
        self.stream.offer(self.pool, list(slots))

    def log(self) -> tuple[list[Told], Any]:
        """The passes since the last call, and why one failed."""
        passes, failure = self.stream.drain()
        told = []
        for layer, mark, hits, arrivals, k, routes, nbytes, read, waited, _, _ in passes:
            ids = np.frombuffer(routes, np.uint32).reshape(-1, k).tolist()
            came = [(expert, slot, evicted, failed) for expert, slot, _, evicted, failed in arrivals]
            told.append(Told(layer, mark, hits, came, ids, nbytes, read, waited))
        return told, failure

    def keys(self) -> list[int]:
        return self.stream.keys(self.pool)

    def run(self, ids, x=None, layer=0, mark=0) -> np.ndarray:
        return np.array(self.layers[layer](self.input(ids) if x is None else x, routes(ids), mark))

    def input(self, ids) -> mx.array:
        return mx.random.normal((len(ids), HIDDEN), key=mx.random.key(5))

    def expected(self, ids, x=None) -> np.ndarray:
        """The same with every expert in memory."""
        arrays = [mx.array(matrix) for matrix in self.matrices]
        mx.eval(arrays)
        gate, up, down = ({"weight": array} for array in arrays)
        product = ExpertProduct(gate, up, down, (None, None, None), activation="swiglu", threads=1)
        return np.array(product(self.input(ids) if x is None else x, routes(ids)))

    def damage(self, *experts: int) -> None:
        with self.path.open("r+b") as file:
            for expert in experts:
                file.seek(expert * self.stride + SIZES[0] + 3)
                byte = file.read(1)[0]
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 1]))

    def check(self) -> None:
        """What a slot is said to hold is what it holds, and no expert lies in two."""
        keys = [key for key in self.keys() if key >= 0]
        assert len(set(keys)) == len(keys)
        for slot, key in enumerate(self.keys()):
            for array, matrix in zip(self.arrays, self.matrices, strict=True):
                assert key < 0 or (np.array(array)[slot] == matrix[key % EXPERTS]).all(), (slot, key)


def routes(ids) -> mx.array:
    return mx.array(ids, mx.uint32)


@pytest.fixture
def open_bank(tmp_path):
    """A function (slots, …) → a Bank."""
    made: list[Bank] = []

    def make(slots: int = 6, **options) -> Bank:
        made.append(Bank(tmp_path / f"experts{len(made)}.bin", slots, **options))
        return made[-1]

    yield make
    for bank in made:
        bank.stream.wait()
        os.close(bank.fd)


def assert_works(bank: Bank) -> None:
    """A pass gives what it should, whatever happened before."""
    assert (bank.run([[1, 2]]) == bank.expected([[1, 2]])).all()
    assert bank.log()[1] is None
    bank.check()


@pytest.mark.parametrize("threads", [0, 1, 5])
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("scattered", [False, True])
def test_a_pass_gives_the_bits_of_resident_experts_and_says_what_it_did(
    open_bank, record_file, threads, direct, scattered
) -> None:
    if direct:
        os.close(record_file().open_direct())  # skips where there is no such thing
    bank = open_bank(6, threads=threads, direct=direct, scattered=scattered, layers=2)
    ids = [[3, 5], [5, 0], [1, 3]]
    assert (bank.run(ids, mark=41) == bank.expected(ids)).all()
    assert (bank.run([[3, 6]], mark=42) == bank.expected([[3, 6]])).all()
    assert (bank.run([[3, 3]], layer=1, mark=43) == bank.expected([[3, 3]])).all()
    (first, second, third), failure = bank.log()
    assert failure is None
    assert (first.layer, first.mark, first.hits, first.routes) == (0, 41, [], ids)
    assert sorted(arrival[0] for arrival in first.arrivals) == [0, 1, 3, 5]
    assert all(evicted == -1 and not failed for _, _, evicted, failed in first.arrivals)
    assert first.nbytes == 4 * RECORD and first.read_seconds > 0 and first.wait_seconds >= 0
    assert (second.hits, [arrival[0] for arrival in second.arrivals]) == ([3], [6])
    assert (second.mark, second.nbytes, second.routes) == (42, RECORD, [[3, 6]])
    assert (third.layer, third.mark, third.hits, third.routes) == (1, 43, [], [[3, 3]])
    held = {slot: key for slot, key in enumerate(bank.keys()) if key >= 0}
    assert held == {arrival[1]: arrival[0] for arrival in first.arrivals + second.arrivals} | {
        arrival[1]: EXPERTS + arrival[0] for arrival in third.arrivals
    }
    bank.check()
    assert bank.log() == ([], None), "what was told once is not told again"


def test_experts_that_are_there_are_not_read(open_bank) -> None:
    bank = open_bank()
    bank.run([[2, 4]])
    bank.log()
    bank.damage(2, 4)
    assert (bank.run([[4, 2], [2, 4]]) == bank.expected([[4, 2], [2, 4]])).all()
    ((told,), failure) = bank.log()
    assert failure is None
    assert (told.hits, told.arrivals, told.nbytes, told.wait_seconds) == ([2, 4], [], 0, 0)


def test_uses_are_counted_per_pass_and_expert_and_are_live(open_bank) -> None:
    bank = open_bank(layers=2)
    uses = bank.stream.uses(0)
    uses[7] = 10
    bank.run([[2, 4], [2, 7]])
    bank.run([[2, 2]])
    assert list(uses) == [0, 0, 2, 0, 1, 0, 0, 11]
    assert sum(bank.stream.uses(1)) == 0
    stream = bank.stream
    del bank.stream
    kept = stream.uses(0)
    bank.stream = stream
    del stream
    gc.collect()
    assert list(kept) == list(uses)


def test_more_experts_than_slots_take_turns(open_bank) -> None:
    for slots in (1, 2, 5):
        bank = open_bank(slots)
        ids = [[0, 1], [2, 3], [4, 5], [6, 7], [0, 7]]
        for _ in range(3):
            assert (bank.run(ids) == bank.expected(ids)).all()
            bank.check()
        told, failure = bank.log()
        assert failure is None
        assert all(len(t.hits) + len(t.arrivals) == EXPERTS for t in told)


def test_a_pass_of_no_tokens_is_empty_and_is_no_pass(open_bank) -> None:
    bank = open_bank()
    y = bank.layers[0](mx.zeros((0, HIDDEN)), mx.zeros((0, 2), mx.uint32), 0)
    assert np.array(y).shape == (0, 2, HIDDEN)
    y = bank.layers[0](mx.zeros((3, HIDDEN)), mx.zeros((3, 0), mx.uint32), 0)
    assert np.array(y).shape == (3, 0, HIDDEN)
    assert bank.log() == ([], None)


@pytest.mark.parametrize("dtype", [mx.uint32, mx.int32])
def test_ids_and_activations_of_any_strides_are_taken(open_bank, dtype) -> None:
    bank = open_bank()
    ids = np.array([[3, 5, 0], [1, 3, 2]])
    x = mx.random.normal((HIDDEN, 2), key=mx.random.key(9))
    got = np.array(bank.layers[0](x.T, mx.array(ids.T.copy(), dtype).T, 0))
    assert (got == bank.expected(ids.tolist(), mx.contiguous(x.T))).all()
    assert bank.log()[0][0].routes == ids.tolist()


@pytest.mark.parametrize(("wrong", "told"), [(EXPERTS, EXPERTS), (1 << 30, 1 << 30), (-1, (1 << 32) - 1)])
def test_an_id_out_of_range_fails_the_pass_and_touches_nothing(open_bank, wrong, told) -> None:
    bank = open_bank()
    bank.run([[1, 2]])
    before = bank.keys()
    bank.log()
    x = mx.ones((2, HIDDEN))
    assert np.isnan(np.array(bank.layers[0](x, mx.array([[4, wrong], [4, 1]], mx.int32), 0))).all()
    passes, failure = bank.log()
    assert [(t.hits, t.arrivals, t.nbytes) for t in passes] == [([], [], 0)]
    assert failure == {"kind": "route", "layer": 0, "routes": [1, 4, told]}
    assert bank.keys() == before
    bank.stream.forgive()
    assert_works(bank)


def test_a_failure_stays_and_every_pass_fails_until_it_is_forgiven(open_bank) -> None:
    bank = open_bank(layers=2)
    bank.damage(3)
    assert np.isnan(bank.run([[3, 4]], layer=1)).all()
    first = bank.log()[1]
    for _ in range(2):
        # Neither a good pass nor another bad one changes it, and they read nothing.
        assert np.isnan(bank.run([[0, 1]])).all()
        assert np.isnan(bank.run([[EXPERTS, 1]])).all()
        assert bank.log() == ([], first)
    assert (first["kind"], first["layer"], first["expert"]) == ("checksum", 1, 3)
    bank.stream.forgive()
    assert bank.log() == ([], None)
    assert_works(bank)
    bank.stream.forgive()  # nothing to forgive
    assert_works(bank)


@pytest.mark.parametrize("threads", [0, 3])
def test_of_several_corrupt_experts_one_is_named_and_none_is_in_the_table(open_bank, threads) -> None:
    bank = open_bank(threads=threads)
    bank.damage(3, 6)
    for _ in range(5):
        assert np.isnan(bank.run([[6, 4], [3, 0]])).any()
        (told,), failure = bank.log()
        assert (failure["kind"], failure["layer"]) == ("checksum", 0)
        bad = failure["expert"]
        assert bad in (3, 6)
        assert failure["expected"] == bank.crcs()[bad]
        with bank.path.open("rb") as file:
            file.seek(bad * bank.stride)
            assert failure["actual"] == zlib.crc32(file.read(RECORD))
        failed = {expert for expert, _, _, bad in told.arrivals if bad}
        assert bad in failed
        assert told.nbytes == RECORD * (len(told.arrivals) - len(failed))
        assert not {3, 6} & set(bank.keys())
        bank.stream.forgive()
        bank.check()
        assert_works(bank)


@pytest.mark.parametrize("scattered", [False, True])
def test_a_file_that_ends_tells_place_and_bytes(open_bank, scattered) -> None:
    bank = open_bank(scattered=scattered)
    at = 5 * bank.stride + SIZES[0] + 100
    os.truncate(bank.path, at)
    bank.run([[5, 4]])
    _, failure = bank.log()
    assert failure == {
        "kind": "read",
        "layer": 0,
        "expert": 5,
        "segment": 1,
        "errno": 0,
        "offset": at - 100,
        "wanted": SIZES[1],
        "got": 100,
    }
    bank.stream.forgive()
    assert_works(bank)


def test_a_closed_file_is_a_failed_read_with_the_systems_errno(open_bank) -> None:
    bank = open_bank()
    bank.run([[0, 1]])
    kept = os.dup(bank.fd)
    os.close(bank.fd)
    assert (bank.run([[0, 1]]) == bank.expected([[0, 1]])).all(), "nothing is read"
    bank.log()
    bank.run([[2, 1]])
    (told,), failure = bank.log()
    assert (failure["kind"], failure["expert"], failure["errno"], failure["got"]) == ("read", 2, EBADF, 0)
    assert (told.hits, [(e, failed) for e, _, _, failed in told.arrivals]) == ([1], [(2, True)])
    os.dup2(kept, bank.fd)
    os.close(kept)
    bank.stream.forgive()
    assert_works(bank)


def test_without_checksums_a_file_that_is_written_to_is_read_no_more(open_bank) -> None:
    bank = open_bank(checked=False)
    assert_works(bank)
    os.utime(bank.path, ns=(1, 1))
    bank.run([[5, 1]])
    _, failure = bank.log()
    assert failure == {"kind": "changed", "layer": 0, "expert": 5, "segment": 0}
    assert 5 not in bank.keys()
    bank.stream.forgive()
    assert_works(bank)


def test_while_skipping_passes_are_zeros_and_change_nothing(open_bank) -> None:
    bank = open_bank()
    bank.run([[1, 2]])
    bank.log()
    before, uses = bank.keys(), list(bank.stream.uses(0))
    bank.stream.skip(True)
    assert not bank.run([[1, 5]]).any()
    assert not bank.run([[EXPERTS, 5]]).any(), "nor is anything looked at"
    assert (bank.log(), bank.keys(), list(bank.stream.uses(0))) == (([], None), before, uses)
    bank.stream.skip(False)
    assert_works(bank)


def test_skipping_comes_before_a_failure_that_was_not_forgiven(open_bank) -> None:
    bank = open_bank()
    bank.run([[EXPERTS, 5]])
    bank.stream.skip(True)
    assert not bank.run([[1, 5]]).any()
    bank.stream.skip(False)
    assert np.isnan(bank.run([[1, 5]])).all()
    assert bank.log()[1]["kind"] == "route"


def test_a_pinned_slot_is_never_taken_and_a_pass_that_finds_none_says_so(open_bank) -> None:
    bank = open_bank(2)
    bank.run([[1, 2]])
    slots = [bank.keys().index(key) for key in (1, 2)]
    bank.stream.pin(bank.pool, slots[:1])
    for expert in (3, 4, 5):
        assert (bank.run([[expert, 1]]) == bank.expected([[expert, 1]])).all()
        assert bank.keys()[slots[0]] == 1
    bank.stream.pin(bank.pool, slots)
    held = bank.keys()
    bank.log()
    assert np.isnan(bank.run([[6, 1]])).all()
    assert bank.log()[1] == {"kind": "slots", "layer": 0}
    assert bank.keys() == held
    bank.stream.forgive()
    assert (bank.run([[5, 1]]) == bank.expected([[5, 1]])).all(), "pinned experts are used"
    bank.stream.unpin()
    assert (bank.run([[6, 7]]) == bank.expected([[6, 7]])).all()
    bank.check()


def test_what_somebody_else_filled_is_found_and_what_was_emptied_is_read(open_bank) -> None:
    bank = open_bank(4, layers=2)
    bank.run([[1, 2]])
    slot = bank.keys().index(2)
    bank.stream.set(bank.pool, [slot], [-1])
    assert 2 not in bank.keys()
    bank.stream.set(bank.pool, [slot], [EXPERTS + 2])  # the second layer's, which is the same here
    bank.log()
    assert (bank.run([[2, 2]], layer=1) == bank.expected([[2, 2]])).all()
    assert bank.log()[0][0].hits == [2]
    assert (bank.run([[2, 1]]) == bank.expected([[2, 1]])).all()
    assert [arrival[0] for arrival in bank.log()[0][0].arrivals] == [2]
    bank.check()


def test_waiting_ends_when_everything_queued_has_been_computed_or_dropped(open_bank) -> None:
    bank = open_bank(4)
    bank.stream.wait()  # nothing is queued
    ids = [[[n % EXPERTS, (3 * n + 1) % EXPERTS]] for n in range(40)]
    x = bank.input(ids[0])
    for _ in range(5):
        built = [bank.layers[0](x, routes(i), n) for n, i in enumerate(ids)]
        unused = bank.layers[0](x, routes([[0, EXPERTS]]), 99)  # built and never evaluated
        mx.async_eval(*built)
        del unused
        bank.stream.wait()
        told, failure = bank.log()
        assert (sorted(t.mark for t in told), failure) == (list(range(40)), None)
        for y, i in zip(built, ids, strict=True):
            assert (np.array(y) == bank.expected(i, x)).all()
        bank.check()


def test_a_graph_keeps_the_stream_and_its_memory_alive(tmp_path) -> None:
    bank = Bank(tmp_path / "experts.bin", 6)
    ids = [[1, 2], [3, 1]]
    expected, fd = bank.expected(ids), bank.fd
    y = bank.layers[0](bank.input(ids), routes(ids), 0)
    del bank
    gc.collect()
    assert (np.array(y) == expected).all()
    os.close(fd)


def test_passes_of_several_threads_take_turns_while_others_look_on(open_bank) -> None:
    bank = open_bank(5, layers=3)
    cases = [[[a, b], [b, (a + b) % EXPERTS]] for a in range(EXPERTS) for b in range(a)]
    x = bank.input(cases[0])
    mx.eval(x)
    wanted = [bank.expected(ids, x) for ids in cases]
    wrong: list[object] = []
    told: list[Told] = []
    done = threading.Event()

    def compute(layer: int) -> None:
        with mx.stream(mx.new_stream(mx.cpu)):
            for _ in range(3):
                for number, ids in enumerate(cases):
                    if not (bank.run(ids, x, layer) == wanted[number]).all():
                        wrong.append((layer, ids))
        mx.clear_streams()

    def look() -> None:
        while not done.is_set():
            passes, failure = bank.log()
            told.extend(passes)
            keys = [key for key in bank.keys() if key >= 0]
            if failure is not None or len(set(keys)) != len(keys):
                wrong.append((failure, keys))
            bank.stream.forgive()
            bank.stream.unpin()

    threads = [threading.Thread(target=compute, args=(layer,)) for layer in (0, 1, 2, 0)]
    onlooker = threading.Thread(target=look)
    for thread in (*threads, onlooker):
        thread.start()
    for thread in threads:
        thread.join()
    bank.stream.wait()
    done.set()
    onlooker.join()
    told += bank.log()[0]
    assert not wrong
    assert len(told) == 4 * 3 * len(cases)
    assert all(len(t.hits) + len(t.arrivals) >= 2 for t in told)
    bank.check()


def test_waiting_does_not_hold_the_gil(open_bank) -> None:
    bank = open_bank(2)
    ids = [[0, 1], [2, 3], [4, 5], [6, 7]] * 50
    x = bank.input(ids)
    built = [bank.layers[0](x, routes(ids), n) for n in range(30)]
    mx.async_eval(*built)
    waiting = threading.Thread(target=bank.stream.wait)
    waiting.start()
    waiting.join(60)
    assert not waiting.is_alive()
    assert len(bank.log()[0]) == 30


def test_the_interpreter_may_exit_with_passes_queued() -> None:
    script = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import tempfile
        from pathlib import Path
        import mlx.core as mx
        mx.set_default_device(mx.cpu)
        from test_expert_stream import Bank, routes
        with tempfile.TemporaryDirectory() as folder:
            bank = Bank(Path(folder) / "experts", 2)
            ids = [[0, 1], [2, 3], [4, 5], [6, 7]] * 200
            x = bank.input(ids)
            mx.async_eval(*[bank.layers[0](x, routes(ids), n) for n in range(20)])
        print("ok")
        """
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_what_does_not_fit_together_is_refused_when_it_is_added(open_bank) -> None:
    bank = open_bank()
    stream, fds, places, crcs = bank.stream, [bank.fd] * EXPERTS, bank.places(), bank.crcs()
    for wrong, error in (
        (dict(pool=1), IndexError),
        (dict(pool=-1), TypeError),
        (dict(experts=0), ValueError),
        (dict(experts=-1), TypeError),
        (dict(experts=EXPERTS + 1), ValueError),
        (dict(fds=fds[1:]), ValueError),
        (dict(fds=[]), ValueError),
        (dict(fds=[-1, *fds[1:]]), ValueError),
        (dict(fds=[1 << 31, *fds[1:]]), TypeError),
        (dict(offsets=places[1:]), ValueError),
        (dict(offsets=[-1, *places[1:]]), ValueError),
        (dict(offsets=[(1 << 63) - 10, *places[1:]]), ValueError),
        (dict(fds=fds * 2, offsets=places * 2), ValueError),
        (dict(crcs=crcs[1:]), ValueError),
        (dict(crcs=[-1, *crcs[1:]]), TypeError),
        (dict(crcs=[1 << 32, *crcs[1:]]), TypeError),
    ):
        arguments = dict(pool=bank.pool, experts=EXPERTS, fds=fds, offsets=places, crcs=crcs) | wrong
        with pytest.raises(error):
            stream.add_layer(**arguments)
    with pytest.raises(TypeError):
        stream.add_pool([np.zeros(3)], [12], [False], **ORDER)
    for arrays, sizes, widen in (
        (bank.arrays, SIZES[1:], [False] * 3),
        (bank.arrays, [*SIZES[:2], SIZES[2] + 4], [False] * 3),
        (bank.arrays, [0, *SIZES[1:]], [False] * 3),
        (bank.arrays[:2] + [mx.zeros((5, *SHAPES[2]))], SIZES, [False] * 3),
        ([mx.zeros((2, 4))], [16], [False]),  # not evaluated
    ):
        with pytest.raises(ValueError):
            stream.add_pool(arrays, sizes, widen, **ORDER)
    with pytest.raises(TypeError):
        ExpertStream(threads=-1, direct=False)
    assert stream.add_layer(bank.pool, EXPERTS, fds, places, crcs) == (1, EXPERTS)
    assert_works(bank)


def test_numbers_out_of_range_are_refused(open_bank) -> None:
    bank = open_bank(4, layers=2)
    stream, pool = bank.stream, bank.pool
    for call, error in (
        (lambda: stream.uses(2), IndexError),
        (lambda: stream.uses(-1), TypeError),
        (lambda: stream.layer(2, bank.product()), IndexError),
        (lambda: stream.layer(-1, bank.product()), TypeError),
        (lambda: stream.keys(1), IndexError),
        (lambda: stream.keys(-1), TypeError),
        (lambda: stream.pin(pool, [4]), IndexError),
        (lambda: stream.pin(pool, [-1]), IndexError),
        (lambda: stream.pin(1, [0]), IndexError),
        (lambda: stream.set(pool, [4], [0]), IndexError),
        (lambda: stream.set(pool, [-1], [0]), IndexError),
        (lambda: stream.set(pool, [0], [2 * EXPERTS]), IndexError),
        (lambda: stream.set(pool, [0], [-2]), IndexError),
        (lambda: stream.set(pool, [0, 1], [3]), ValueError),
        (lambda: stream.set(1, [0], [0]), IndexError),
    ):
        with pytest.raises(error):
            call()
    assert bank.keys() == [-1] * 4
    assert_works(bank)


def test_arrays_that_do_not_fit_are_refused_when_a_pass_is_built(open_bank) -> None:
    bank = open_bank()
    layer = bank.layers[0]
    x, ids = mx.ones((2, HIDDEN)), routes([[0, 1], [2, 3]])
    for arguments, message in (
        ((x.astype(mx.bfloat16), ids, 0), "x is .*bfloat16, not float32"),
        ((mx.ones((2, HIDDEN + 1)), ids, 0), "its last extent must be 16"),
        ((mx.array(1.0), ids, 0), "its last extent must be 16"),
        ((x, ids.astype(mx.int64), 0), "ids is .*int64"),
        ((x, ids.astype(mx.float32), 0), "ids is .*float32"),
        ((x, ids[0], 0), "all but the last must agree"),
        ((x, ids[:1], 0), "all but the last must agree"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(*arguments)
    with pytest.raises(TypeError):
        layer(x, ids, -1)
    other = open_bank(3)
    with pytest.raises(ValueError, match="the product has 3 slots and the pool 6"):
        bank.stream.layer(0, other.product())
    assert_works(bank)


def test_the_stub_names_what_the_extension_has() -> None:
    folder = Path(lme_expert_stream.__file__).parent
    stub = ast.parse((folder / "_ext.pyi").read_text())
    top = {node.name: node for node in stub.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    assert set(top) == {name for name in vars(_ext) if not name.startswith("_")}
    for name in ("ExpertStream", "StreamedLayer"):
        described = top[name]
        assert isinstance(described, ast.ClassDef)
        methods = {node.name for node in described.body if isinstance(node, ast.FunctionDef)}
        assert methods - {"__init__", "__call__"} == {m for m in vars(getattr(_ext, name)) if m[0] != "_"}
    assert (folder / "py.typed").exists()
    assert set(lme_expert_stream.build_info()) == {"version", "compiler", "mlx"}
