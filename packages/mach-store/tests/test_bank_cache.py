import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mach_store.bank_cache import BankCache
from mach_store.errors import DispatchCancelledError, MemoryBudgetError, SidecarCorruptionError
from mach_store.expert_arrays import slot_bytes
from mach_store.scatter_reader import python_twin

COMPUTES = [mx.float32, mx.bfloat16]


def bank_over(
    source, *, slots: float, top_k: int = 2, compute: mx.Dtype = mx.float32, reader=None
) -> BankCache:
    size = max(slot_bytes(s, compute) for s in source.schemas.values())
    return BankCache(
        source, reader or python_twin(), budget_bytes=int(slots * size), top_k=top_k, compute=compute
    )


def in_slot(bank: BankCache, layer: int, slot: int) -> bytes:
    """The bytes of one slot as they lie on disk (compute dtype bfloat16: nothing is widened)."""
    view = bank.layers[layer]
    parts = []
    for segment in bank.source.schemas[layer].segments:
        array = view.components[segment.projection][segment.component]
        plain = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
        parts.append(np.array(plain)[slot].tobytes())
    return b"".join(parts)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_no_budget_is_ever_exceeded(schema, file_source, data) -> None:
    shapes = [schema(32, 32), schema(64, 32), schema(32, 32, packed=False), schema(32, 256)]
    layers = data.draw(st.lists(st.sampled_from(shapes), min_size=1, max_size=5))
    experts = data.draw(st.integers(2, 6))
    top_k = data.draw(st.integers(1, experts))
    compute = data.draw(st.sampled_from(COMPUTES))
    source = file_source(dict(enumerate(layers)), experts)
    sizes = [slot_bytes(s, compute) for s in layers]
    least, everything = top_k * sum(sizes), experts * sum(sizes)
    budget = data.draw(st.integers(least, everything + 1000))
    bank = BankCache(source, python_twin(), budget_bytes=budget, top_k=top_k, compute=compute)
    bank.check()
    assert bank.nbytes <= budget
    # And it is used: what is left over is less than one more slot of every kind, or every expert is in.
    assert bank.whole or budget - bank.nbytes < sum({s: slot_bytes(s, compute) for s in layers}.values())
    for layer, view in bank.layers.items():
        pool = view.pool
        members = sum(other.pool is pool for other in bank.layers.values())
        assert pool.slots >= top_k * members, layer
    source.close()


def test_a_budget_of_less_than_one_tokens_experts_says_what_is_needed(schema, file_source) -> None:
    source = file_source({0: schema(), 1: schema()}, 4)
    size = slot_bytes(schema(), mx.float32)
    with pytest.raises(MemoryBudgetError, match="one token needs 2 experts in each of 2 layers") as caught:
        BankCache(source, python_twin(), budget_bytes=4 * size - 1, top_k=2, compute=mx.float32)
    assert (caught.value.needed, caught.value.available) == (4 * size, 4 * size - 1)
    assert "--expert-cache-gb" in str(caught.value)
    exact = BankCache(source, python_twin(), budget_bytes=4 * size, top_k=2, compute=mx.float32)
    assert exact.slots == 4


def test_widened_scales_are_counted_in_the_budget(schema, file_source) -> None:
    source = file_source({0: schema()}, 4)
    narrow = bank_over(source, slots=4, compute=mx.bfloat16)
    wide = bank_over(source, slots=4, compute=mx.float32)
    assert narrow.nbytes == 4 * source.schemas[0].nbytes
    assert wide.nbytes > narrow.nbytes
    assert wide.nbytes == sum(
        array.nbytes for parts in wide.layers[0].components.values() for array in parts.values()
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(data=st.data())
def test_every_slot_holds_its_experts_bytes_after_every_random_operation(
    schema, file_source, native_reader, data
) -> None:
    # Two kinds of record in one model, a bank of random size, reads that fail now and then.
    source = file_source({0: schema(), 1: schema(64, 32), 3: schema()}, 5)
    reader = data.draw(st.sampled_from([native_reader, python_twin()]))
    bank = bank_over(source, slots=data.draw(st.floats(6, 16)), compute=mx.bfloat16, reader=reader)
    for _ in range(data.draw(st.integers(1, 20))):
        layer = data.draw(st.sampled_from([0, 1, 3]))
        wanted = sorted(data.draw(st.sets(st.integers(0, 4), min_size=1, max_size=2)))
        source.broken = data.draw(st.sets(st.tuples(st.just(layer), st.integers(0, 4)), max_size=1))
        ids = bank.fence(mx.array([wanted]))
        assert ids == wanted
        missing = [e for e in wanted if (layer, e) not in bank.layers[layer].pool.table]
        if any((layer, expert) in source.broken for expert in missing):
            with pytest.raises(SidecarCorruptionError) as caught:
                bank.layers[layer].acquire(wanted)
            assert (caught.value.layer, caught.value.expert) in source.broken
            bank.abandon()
        else:
            slot_of = bank.layers[layer].acquire(wanted)
            assert sorted(slot_of) == wanted
            assert len(set(slot_of.values())) == len(wanted)
        bank.check()
        for view in bank.layers.values():
            for (owner, expert), slot in view.pool.table.items():
                assert in_slot(bank, owner, slot) == source.record(owner, expert)
    source.close()


def test_a_failed_read_gives_its_slots_back(schema, file_source) -> None:
    source = file_source({0: schema()}, 6)
    bank = bank_over(source, slots=4)
    view = bank.layers[0]
    view.acquire([0])
    source.broken = {(0, 3)}
    for _ in range(10):
        bank.fence(mx.array([2, 3]))
        with pytest.raises(SidecarCorruptionError):
            view.acquire([2, 3])
        bank.abandon()
        bank.check()
    assert view.pool.free == 3
    assert view.resident(range(6)) == [0]
    assert bank.totals().misses == 1
    source.broken = set()
    assert sorted(view.acquire([2, 3])) == [2, 3]
    bank.check()


def test_pins_last_until_the_next_fence_and_no_longer(schema, file_source) -> None:
    bank = bank_over(file_source({0: schema(), 1: schema()}, 6), slots=4)
    pool = bank.layers[0].pool
    bank.fence(mx.array([0, 1]))
    bank.layers[0].acquire([0, 1])
    bank.hold(mx.zeros(1))
    assert pool.pinned == {(0, 0), (0, 1)}
    bank.fence(mx.array([2, 3]))
    assert pool.pinned == set()
    bank.layers[1].acquire([2, 3])
    bank.abandon()
    assert pool.pinned == set()


def test_a_fence_evaluates_what_is_held_before_its_slots_can_be_written(schema, file_source) -> None:
    # The graph that refers to the slots must not see the bytes of the experts that replace them.
    source = file_source({0: schema()}, 6)
    bank = bank_over(source, slots=2, top_k=1, compute=mx.bfloat16)
    view = bank.layers[0]
    bank.fence(mx.array([0, 1]))
    slot_of = view.acquire([0, 1])
    weight = view.components["gate_proj"]["weight"]
    picked = weight[mx.array([slot_of[0]])].flatten()
    held = picked + mx.zeros_like(picked)
    bank.hold(held)
    bank.fence(mx.array([2, 3]))
    view.acquire([2, 3])
    expected = np.frombuffer(source.record(0, 0)[: held.nbytes], np.uint32)
    assert np.array_equal(np.array(held), expected)


def test_a_cancelled_fence_releases_and_raises(schema, file_source) -> None:
    bank = bank_over(file_source({0: schema()}, 6), slots=4)
    bank.fence(mx.array([0, 1]))
    bank.layers[0].acquire([0, 1])
    bank.hold(mx.ones(1))
    bank.cancelled = lambda: True
    with pytest.raises(DispatchCancelledError):
        bank.fence(mx.array([2]))
    assert bank.layers[0].pool.pinned == set()
    bank.check()


def test_counters_count_distinct_experts_bytes_and_evictions(schema, file_source) -> None:
    bank = bank_over(file_source({0: schema()}, 6), slots=2, top_k=2)
    view = bank.layers[0]
    for wanted in ([0, 1], [1, 2], [1, 2]):
        bank.fence(mx.array(wanted))
        view.acquire(wanted)
    counters = view.counters
    assert (counters.hits, counters.misses, counters.evictions) == (3, 3, 1)
    assert counters.bytes_read == 3 * bank.source.schemas[0].nbytes
    assert counters.read_seconds > 0
    stats = bank.stats()
    assert stats["hit_rate"] == 0.5
    assert stats["experts_resident"] == 2
    assert stats["layers"]["0"]["resident"] == 2
    assert stats["budget_bytes"] >= stats["bank_bytes"]


def test_prewarming_leaves_a_bank_alone_that_is_not_whole(schema, file_source) -> None:
    source = file_source({0: schema()}, 6)
    bank = bank_over(source, slots=5)
    bank.prewarm()
    assert source.reads == []
    assert not bank.host_free


def test_closing_closes_the_files(schema, file_source) -> None:
    source = file_source({0: schema()}, 4)
    bank = bank_over(source, slots=4)
    bank.close()
    assert source._fd == -1


def test_the_map_shows_what_is_in_memory_and_what_was_needed(schema, file_source) -> None:
    source = file_source(dict.fromkeys(range(2), schema(32, 32)), 4)
    bank = bank_over(source, slots=5)
    for experts in ([0, 1], [1, 2], [3, 1]):
        bank.layers[0].acquire(experts)
        bank.release()
    bank.layers[1].read_scratch(bank.scratch(1), [2])
    before = bank.expert_map()
    assert list(before[0].uses or ()) == [1, 3, 1, 1]
    assert list(before[1].uses or ()) == [0, 0, 1, 0], "transient reads are uses"
    assert list(before[1].resident) == [0, 0, 0, 0], "but leave the bank alone"
    for layer, experts in before.items():
        assert [n for n in range(4) if experts.resident[n]] == bank.layers[layer].resident(range(4))
    bank.layers[1].acquire([0, 3])
    bank.check()
    assert list(before[1].resident) == [0, 0, 0, 0], "a copy"
    assert list(bank.expert_map()[1].resident) == [1, 0, 0, 1]


def test_a_whole_bank_does_not_count_single_experts(schema, file_source) -> None:
    bank = bank_over(file_source({0: schema(32, 32)}, 4), slots=4)
    bank.prewarm()
    assert bank.expert_map()[0] == (b"\1" * 4, None)
