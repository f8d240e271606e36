import dataclasses
import mmap
import os
import threading
import time
from itertools import count, repeat
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.switch_layers import SwiGLU

from mach.io.sidecar_layout import read_layout
from mach_store import page_return, read_ahead
from mach_store.bank_cache import BankCache
from mach_store.bank_form import StoredForm
from mach_store.cpu_kernels import open_kernels
from mach_store.errors import DispatchCancelledError, ExpertReadError, SidecarCorruptionError
from mach_store.gather_switch_glu import GatherSwitchGLU
from mach_store.pass_results import PassResults
from mach_store.read_ahead import THREAD_NAME
from mach_store.scatter_reader import ScatterReader
from mach_store.settings import StoreSettings
from mach_store.sidecar.sidecar_source import SidecarSource

FAMILIES = ("qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4", "deepseek_v4")
TOKENS = np.random.default_rng(3).integers(0, 96, 80).tolist()


def run(model, *, chunk: int, decode: int = 6) -> list[mx.array]:
    """The logits of the prompt's last token and of a few greedy tokens after it."""
    cache = make_prompt_cache(model)
    for first in range(0, len(TOKENS), chunk):
        out = model(mx.array([TOKENS[first : first + chunk]]), cache=cache)
        mx.eval(out)
    rows = [out[0, -1]]
    for _ in range(decode):
        rows.append(model(mx.argmax(rows[-1]).reshape(1, 1), cache=cache)[0, -1])
        mx.eval(rows[-1])
    return rows


@pytest.mark.parametrize("scratch_experts", [1, 2, 3, 8])
@pytest.mark.parametrize("chunk", [1, 7, 64, 80])
def test_transient_prefill_equals_one_shot_and_so_do_the_tokens_after_it(
    checkpoints, open_bank, build, scratch_experts, chunk
) -> None:
    directory = checkpoints.engine()
    whole = open_bank(directory, 16)
    whole.prewarm()
    expected = run(build(directory, whole), chunk=chunk)
    assert whole.totals().transient_reads == 0
    bank = open_bank(directory, 6, scratch_experts=scratch_experts)
    got = run(build(directory, bank, transient_min_tokens=2), chunk=chunk)
    bank.check()
    for mine, theirs in zip(got, expected, strict=True):
        assert mx.array_equal(mine, theirs)
    if chunk > 1:
        assert bank.totals().transient_reads > 0


@pytest.mark.parametrize("chunk", [7, 80])
@pytest.mark.parametrize("quantization", ["affine", "mxfp4", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_transient_prefill_equals_one_shot_in_every_family(
    checkpoints, open_bank, build, family, quantization, chunk
) -> None:
    directory = checkpoints.engine(family, quantization)
    whole = open_bank(directory, 1 << 10)
    whole.prewarm()
    expected = run(build(directory, whole), chunk=chunk, decode=2)
    bank = open_bank(directory, 9, scratch_experts=2)
    got = run(build(directory, bank, transient_min_tokens=2), chunk=chunk, decode=2)
    for mine, theirs in zip(got, expected, strict=True):
        assert mx.array_equal(mine, theirs)
    bank.check()


def test_chunks_of_any_size_choose_the_same_tokens(checkpoints, open_bank, build) -> None:
    directory = checkpoints.engine()
    runs = []
    for chunk in (1, 7, 64, 80):
        bank = open_bank(directory, 6, scratch_experts=2)
        runs.append(run(build(directory, bank, transient_min_tokens=2), chunk=chunk))
    for other in runs[1:]:
        for mine, theirs in zip(other, runs[0], strict=True):
            assert mx.allclose(mine, theirs, atol=1e-4)
            assert int(mine.argmax().item()) == int(theirs.argmax().item())


@pytest.fixture
def dispatch_over(checkpoints, open_bank):
    """A function (slots, scratch experts) → the bank, and a function that routes passes of 32 tokens."""

    def make(slots: int, scratch_experts: int = 2):
        bank = open_bank(checkpoints.engine(), slots, scratch_experts=scratch_experts)
        modules = {
            layer: GatherSwitchGLU(bank, layer, lambda up, gate: up * gate, transient_min_tokens=32)
            for layer in bank.layers
        }
        x = mx.random.normal((1, 32, 64), key=mx.random.key(2))

        def go(layer: int, pairs: list[list[int]]) -> mx.array:
            y = modules[layer](x[:, : len(pairs)], mx.array([pairs]))
            mx.eval(y)
            return y

        return bank, go

    return make


def resident(bank, layer: int) -> list[int]:
    return bank.layers[layer].resident(range(8))


def test_prefill_fills_free_slots_with_the_hottest_experts_and_no_more_than_the_share(dispatch_over) -> None:
    bank, go = dispatch_over(6)  # a share of three slots for each of two layers
    hot = [[0, 1]] * 14 + [[0, 2]] * 10 + [[1, 3]] * 5 + [[4, 5]] * 3
    go(0, hot)
    bank.check()
    assert resident(bank, 0) == [0, 1, 2]
    assert bank.totals().evictions == 0
    assert bank.totals().transient_reads == 3
    assert bank.totals().misses == 6


def test_the_policy_hears_of_a_prompt_that_went_past_the_bank(dispatch_over) -> None:
    bank, go = dispatch_over(4)
    go(0, [[0, 1]] * 20 + [[0, 2]] * 12)
    assert resident(bank, 0) == [0, 1]
    assert bank.layers[0].pool.policy.candidates(1, ()) == [(0, 1)]
    go(0, [[1, 3]] * 32)
    assert resident(bank, 0) == [0, 1]
    assert bank.layers[0].pool.policy.candidates(1, ()) == [(0, 0)]


def test_prefill_evicts_nothing(dispatch_over) -> None:
    bank, go = dispatch_over(4)
    go(0, [[6, 7]])
    go(1, [[4, 5]])
    assert (resident(bank, 0), resident(bank, 1)) == ([6, 7], [4, 5])
    go(0, [[0, 1]] * 16 + [[2, 6]] * 16)
    bank.check()
    assert (resident(bank, 0), resident(bank, 1)) == ([6, 7], [4, 5])
    assert bank.totals().evictions == 0
    assert bank.layers[0].counters.hits == 1
    assert bank.layers[0].counters.transient_reads == 3


def test_prefill_reads_each_expert_once_for_all_its_tokens(dispatch_over) -> None:
    bank, go = dispatch_over(4)
    go(0, [[expert, (expert + 1) % 8] for expert in range(8)] * 4)
    counters = bank.layers[0].counters
    assert counters.misses == 8
    assert counters.bytes_read == 8 * bank.source.schemas[0].nbytes


def test_prefill_gives_each_token_its_own_experts_in_its_own_order(dispatch_over) -> None:
    random = np.random.default_rng(11)
    pairs = [random.permutation(8)[:2].tolist() for _ in range(32)]
    _, transient = dispatch_over(4, 1)
    _, whole = dispatch_over(16)
    assert mx.array_equal(transient(0, pairs), whole(0, pairs))
    swapped = transient(0, [pair[::-1] for pair in pairs])
    assert mx.array_equal(swapped[..., ::-1, :], whole(0, pairs))


def test_the_arena_is_made_at_its_first_use_and_counted(dispatch_over) -> None:
    bank, go = dispatch_over(4, 3)
    go(0, [[0, 1]])
    assert bank.stats()["scratch_bytes"] == 0
    go(0, [[2, 3]] * 32)
    assert bank.stats()["scratch_bytes"] == bank.scratch_bytes > 0


class WatchedPlans:
    """A reader's plans that say what they read and where, and hold a read back until somebody lets it go."""

    def __init__(self, reader: ScatterReader) -> None:
        self.reads: list[tuple[str, list[int]]] = []
        self.before = lambda slots: None
        make = reader._plan
        self.reader = dataclasses.replace(reader, _plan=lambda *arguments: self._Plan(self, make(*arguments)))

    class _Plan:
        def __init__(self, watched: "WatchedPlans", plan: Any) -> None:
            self._watched, self._plan = watched, plan

        def read(self, slots, fds, offsets, crcs=None, *, threads=4, direct=False) -> int:
            self._watched.before(list(slots))
            done: int = self._plan.read(slots, fds, offsets, crcs, threads=threads, direct=direct)
            self._watched.reads.append((threading.current_thread().name, list(slots)))
            return done


@pytest.fixture
def streamed(open_bank, native_reader):
    """A function (checkpoint, slots, arena, reader, kernels) → bank, dispatch of layer 0, its input."""

    def make(directory, slots, scratch_experts, reader=native_reader, *, native=True, waits=True):
        bank = open_bank(directory, slots, reader=reader, scratch_experts=scratch_experts)
        if waits:  # as from a disk: these small files are in the page cache
            bank.reading_waits = lambda threads: True
        kernels = open_kernels(StoreSettings(cpu_kernels=native))
        module = GatherSwitchGLU(bank, 0, SwiGLU(), transient_min_tokens=8, kernels=kernels)
        dice = np.random.default_rng(4)
        ids = mx.array(np.stack([dice.permutation(8)[:2] for _ in range(24)])[None].astype(np.uint32))
        x = mx.random.normal((1, 24, 64), key=mx.random.key(2))
        return bank, lambda: module(x, ids)

    return make


def reading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


@pytest.mark.parametrize("native", [True, False], ids=["native kernels", "stock"])
@pytest.mark.parametrize("scratch_experts", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("slots", [4, 5, 7])
def test_every_arena_and_every_reader_gives_the_same_bits_and_reads_each_expert_once(
    checkpoints, streamed, reader, slots, scratch_experts, native
) -> None:
    directory = checkpoints.engine()
    whole, dispatch = streamed(directory, 16, 4, native=native)
    whole.prewarm()
    expected = dispatch()
    bank, dispatch = streamed(directory, slots, scratch_experts, reader, native=native)
    for round_number in range(3):
        before = bank.totals()
        assert mx.array_equal(dispatch(), expected)
        bank.release()
        bank.check()
        after = bank.totals()
        assert (after.hits - before.hits) + (after.misses - before.misses) == 8
        read = (after.misses - before.misses) * bank.source.schemas[0].nbytes
        assert after.bytes_read - before.bytes_read == read
        assert after.evictions == 0
        assert (
            round_number == 0
            or after.transient_reads - before.transient_reads == after.misses - before.misses
        )


def test_the_next_wave_is_read_by_another_thread_while_this_one_is_computed(
    checkpoints, streamed, native_reader, monkeypatch
) -> None:
    watched = WatchedPlans(native_reader)
    bank, dispatch = streamed(checkpoints.engine(), 4, 4, watched.reader)
    begun, computing, at_once = threading.Semaphore(0), [], []
    watched.before = lambda slots: begun.release()
    compute = PassResults.compute

    def held(self, tensors, routes, slots):
        computing.append(sorted({int(slot) for slot in slots}))
        if len(computing) < waves:
            # The read that this computation does not need must begin before it ends, or this fails.
            assert begun.acquire(timeout=20)
            at_once.append(True)
        compute(self, tensors, routes, slots)

    waves = 4  # two experts into the bank, then 2 + 2 + 2 through an arena of four
    monkeypatch.setattr(PassResults, "compute", held)
    begun_first = dispatch()
    mx.eval(begun_first)
    assert len(at_once) == waves - 1
    assert len(computing) == len(watched.reads) == waves
    names = [name for name, _ in watched.reads]
    assert names[0] == threading.current_thread().name, "there is nothing to compute beside the first read"
    assert all(name.startswith(THREAD_NAME) for name in names[1:])
    for number in range(2, waves):
        assert not set(watched.reads[number][1]) & set(computing[number - 1]), "the other half of the arena"
    assert bank.totals().wait_seconds <= bank.totals().read_seconds + 1


def test_no_slot_that_is_computed_with_is_written(checkpoints, streamed, native_reader, monkeypatch) -> None:
    watched = WatchedPlans(native_reader)
    bank, dispatch = streamed(checkpoints.engine(), 4, 3, watched.reader)
    compute = PassResults.compute

    def slow(self, tensors, routes, slots):
        used = sorted({int(slot) for slot in slots})
        parts = [array for group in tensors.values() for array in group.values()]
        before = [bytes(memoryview(array[slot].astype(mx.float32))) for array in parts for slot in used]
        reads = len(watched.reads)
        for _ in range(200):  # the next wave, if it is being read, is read to its end
            if len(watched.reads) > reads:
                break
            time.sleep(0.001)
        compute(self, tensors, routes, slots)
        after = [bytes(memoryview(array[slot].astype(mx.float32))) for array in parts for slot in used]
        assert after == before

    monkeypatch.setattr(PassResults, "compute", slow)
    mx.eval(dispatch())
    assert len(watched.reads) == 5  # 2 into the bank, 2 + 1 + 2 + 1 through the arena


@pytest.mark.parametrize("expert", range(8))
@pytest.mark.parametrize("damage", ["corrupt", "truncated"])
def test_a_damaged_record_in_any_wave_fails_the_pass_and_leaves_all_consistent(
    checkpoints, copy_checkpoint, streamed, reader, damage, expert
) -> None:
    whole, dispatch = streamed(checkpoints.engine(), 16, 4)
    expected = dispatch()
    whole.close()
    directory = copy_checkpoint(checkpoints.engine())
    bank, dispatch = streamed(directory, 5, 3, reader)
    record = read_layout(str(directory / "expert_sidecar")).layers[0]
    path = directory / "expert_sidecar" / record.file
    good = path.read_bytes()
    at = expert * record.stride + record.schema.nbytes // 2
    if damage == "corrupt":
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        error: type[Exception] = SidecarCorruptionError
    else:
        os.truncate(path, at)
        error = ExpertReadError
    for _ in range(2):
        with pytest.raises(error) as caught:
            dispatch()
        # Where the file ends early the first record that is gone is named.
        assert caught.value.expert == expert or damage == "truncated"
        bank.abandon()
        bank.check()
        assert expert not in bank.layers[0].resident(range(8))
        assert len(reading_threads()) <= 1
    path.write_bytes(good)  # the same file, in place
    assert mx.array_equal(dispatch(), expected)
    bank.release()
    bank.check()
    bank.close()
    assert reading_threads() == []


@pytest.mark.parametrize("after", range(6))
def test_a_request_may_be_cancelled_between_any_two_waves(checkpoints, streamed, after) -> None:
    whole, dispatch = streamed(checkpoints.engine(), 16, 4)
    expected = dispatch()
    bank, dispatch = streamed(checkpoints.engine(), 4, 4)
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > after

    bank.cancelled = cancelled
    # Once by the fence and once before each of four waves.
    if after < 5:
        with pytest.raises(DispatchCancelledError):
            dispatch()
    else:
        dispatch()
    bank.abandon()
    bank.check()
    bank.cancelled = lambda: False
    assert mx.array_equal(dispatch(), expected)
    bank.release()
    bank.check()


def test_a_computation_that_fails_waits_for_the_read_beside_it(
    checkpoints, streamed, native_reader, monkeypatch
) -> None:
    watched = WatchedPlans(native_reader)
    bank, dispatch = streamed(checkpoints.engine(), 5, 4, watched.reader)
    reading, go, compute = threading.Event(), threading.Event(), PassResults.compute
    dispatch()  # fills the bank
    bank.release()
    free = [pool.free for pool in bank._pools]
    watched.reads.clear()
    watched.before = lambda slots: (reading.set(), go.wait(20)) and None

    def fail(self, tensors, routes, slots):
        assert reading.wait(20)
        threading.Timer(0.02, go.set).start()
        raise RuntimeError("the computation failed")

    monkeypatch.setattr(PassResults, "compute", fail)
    with pytest.raises(RuntimeError, match="the computation failed"):
        dispatch()
    assert len(watched.reads) == 1, "the read has ended before the failure was told"
    bank.abandon()
    bank.check()
    assert [pool.free for pool in bank._pools] == free
    monkeypatch.setattr(PassResults, "compute", compute)
    watched.before = lambda slots: None
    dispatch()


@pytest.mark.parametrize(
    ("blocks", "native", "read_threads", "ahead"),
    [
        pytest.param(count(), True, 4, True, id="from the disk"),
        pytest.param(repeat(7), True, 4, False, id="from the page cache"),
        pytest.param(repeat(7), False, 4, True, id="beside products that leave cores idle"),
        pytest.param(repeat(7), True, 1, True, id="beside products with more cores than the reader"),
        pytest.param(repeat(None), True, 4, True, id="from who knows where"),
    ],
)
def test_what_is_mere_copying_is_not_read_beside_products_that_take_the_same_cores(
    checkpoints, streamed, native_reader, monkeypatch, blocks, native, read_threads, ahead
) -> None:
    monkeypatch.setenv("LME_CPU_THREADS", "2")
    monkeypatch.setattr(read_ahead, "_blocks_read", lambda: next(blocks))
    watched = WatchedPlans(dataclasses.replace(native_reader, threads=read_threads))
    _, dispatch = streamed(checkpoints.engine(), 4, 4, watched.reader, native=native, waits=False)
    expected = dispatch()
    threads = [name.startswith(THREAD_NAME) for name, _ in watched.reads]
    assert len(threads) == 4
    assert not threads[0] and all(beside == ahead for beside in threads[1:])
    assert mx.array_equal(dispatch(), expected)


def test_closing_a_bank_ends_its_reading_thread(checkpoints, streamed) -> None:
    bank, dispatch = streamed(checkpoints.engine(), 4, 4)
    assert reading_threads() == []
    dispatch()
    assert len(reading_threads()) == 1
    bank.close()
    assert reading_threads() == []


def resident_bytes(arrays) -> int:
    """Memory behind arrays that is really there, in whole pages."""
    page, there = mmap.PAGESIZE, 0
    with open("/proc/self/pagemap", "rb") as pages:
        for array in arrays:
            begin = np.array(array, copy=False).ctypes.data
            pages.seek(-(-begin // page) * 8)
            count = (begin + array.nbytes) // page - -(-begin // page)
            entries = np.frombuffer(pages.read(8 * count), np.uint64)
            there += page * int((entries >> np.uint64(63)).sum())
    return there


@pytest.mark.parametrize("how", ["pages", "arrays"])
def test_decoding_reclaims_the_arena_and_the_next_prompt_takes_it_again(
    checkpoints, native_reader, how
) -> None:
    if how == "pages" and (refusal := page_return.refusal()) is not None:
        pytest.skip(refusal)
    directory = checkpoints.engine()
    answers = []
    for reclaim in (False, True):
        source = SidecarSource(str(directory / "expert_sidecar"))
        size = max(schema.nbytes for schema in source.schemas.values())
        form = StoredForm(mx.bfloat16, native_reader)
        bank = BankCache(
            source,
            native_reader,
            budget_bytes=4 * size,
            top_k=2,
            compute=mx.bfloat16,
            scratch_experts=8,
            form=form,
            reclaim=reclaim,
        )
        if how == "arrays":
            bank.resize_refusal = "for this test"
        kernels = open_kernels(StoreSettings())
        module = GatherSwitchGLU(bank, 0, SwiGLU(), transient_min_tokens=8, kernels=kernels)
        x = mx.random.normal((1, 24, 64), key=mx.random.key(2))
        dice = np.random.default_rng(4)
        ids = mx.array(np.stack([dice.permutation(8)[:2] for _ in range(24)])[None].astype(np.uint32))
        bank.begin_decoding()
        assert bank.stats()["scratch_bytes"] == bank.stats()["scratch_reclaimed_bytes"] == 0
        for round_number in (1, 2):
            answers.append(module(x, ids))
            assert bank.stats()["scratch_bytes"] == bank.scratch_bytes > 0
            arena = [parts["weight"] for parts in bank.scratch(0).components.values()]
            before = resident_bytes(arena) if how == "pages" else 0
            bank.begin_decoding()
            bank.begin_decoding()
            stats = bank.stats()
            if not reclaim:
                assert stats["scratch_bytes"] == bank.scratch_bytes and stats["scratch_reclaimed_bytes"] == 0
                assert how == "arrays" or resident_bytes(arena) == before > 0
                continue
            assert stats["scratch_bytes"] == 0
            assert stats["scratch_reclaimed_bytes"] == round_number * bank.scratch_bytes
            if how == "pages":
                assert resident_bytes(arena) == 0 < before
            else:
                assert bank.arena._arrays == {}
        bank.close()
    assert all(mx.array_equal(answer, answers[0]) for answer in answers)
