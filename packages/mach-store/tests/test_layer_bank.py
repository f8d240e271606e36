import mlx.core as mx
import pytest

from mach_store.bank_cache import BankCache
from mach_store.expert_arrays import slot_bytes


@pytest.fixture
def bank(schema, file_source, native_reader) -> BankCache:
    source = file_source({0: schema(), 1: schema()}, 6)
    size = slot_bytes(schema(), mx.float32)
    return BankCache(source, native_reader, budget_bytes=4 * size, top_k=2, compute=mx.float32)


def test_acquire_reads_all_missing_experts_in_one_batch(bank) -> None:
    view = bank.layers[0]
    view.acquire([1])
    bank.source.reads.clear()
    slot_of = view.acquire([0, 1, 2])
    assert bank.source.reads == [(0, 0), (0, 2)]
    assert sorted(slot_of) == [0, 1, 2]
    assert view.resident([2, 5, 0]) == [2, 0]


def test_acquire_never_evicts_what_the_same_call_needs(bank) -> None:
    view = bank.layers[0]
    view.acquire([0, 1, 2, 3])
    bank.abandon()
    # 0 is the oldest, but wanted again: 1 must go.
    slot_of = view.acquire([0, 4])
    assert view.resident(range(6)) == [0, 2, 3, 4]
    assert slot_of[0] != slot_of[4]
    bank.check()


def test_a_layers_experts_are_its_own(bank) -> None:
    zero, one = bank.layers[0].acquire([3]), bank.layers[1].acquire([3])
    assert zero[3] != one[3]
    bank.check()


def test_slots_on_the_device_exist_only_when_every_expert_is_there_to_stay(
    schema, file_source, native_reader
) -> None:
    source = file_source({0: schema(), 1: schema()}, 4)
    size = slot_bytes(schema(), mx.float32)
    whole = BankCache(source, native_reader, budget_bytes=8 * size, top_k=2, compute=mx.float32)
    view = whole.layers[0]
    assert view.device_slots is None
    slot_of = view.acquire([0, 1, 2])
    assert view.device_slots is None
    slot_of |= view.acquire([3])
    assert view.device_slots.tolist() == [slot_of[expert] for expert in range(4)]
    assert whole.layers[1].device_slots is None
    almost = BankCache(source, native_reader, budget_bytes=7 * size, top_k=2, compute=mx.float32)
    almost.layers[0].acquire([0, 1, 2, 3])
    assert almost.layers[0].device_slots is None


def test_scratch_reads_leave_the_bank_alone(bank) -> None:
    view = bank.layers[0]
    arena = bank.scratch(0)
    view.read_scratch(arena, [4, 5])
    assert view.resident(range(6)) == []
    assert (view.counters.misses, view.counters.transient_reads) == (2, 2)
    bank.check()


def test_a_layer_above_its_floor_does_not_give_up_what_it_is_just_using(
    schema, file_source, native_reader
) -> None:
    # The other layer is at its floor, so only this one can give; all it has is wanted in this very pass.
    source = file_source({0: schema(), 1: schema()}, 6)
    size = slot_bytes(schema(), mx.float32)
    bank = BankCache(source, native_reader, budget_bytes=5 * size, top_k=2, compute=mx.float32)
    bank.layers[1].acquire([0, 1])
    bank.layers[0].acquire([0, 1, 2])
    bank.abandon()
    slot_of = bank.layers[0].acquire([0, 1, 2, 3])
    assert len(set(slot_of.values())) == 4
    assert bank.layers[1].resident(range(6)) == [1]
    bank.check()
