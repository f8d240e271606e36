import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mach_store.bank_form import StoredForm
from mach_store.expert_pool import ExpertPool
from mach_store.scatter_reader import python_twin


@pytest.fixture
def make_pool(schema):
    def make(slots: int, layers: int = 2, experts: int = 6, top_k: int = 2) -> ExpertPool:
        counts = dict.fromkeys(range(layers), experts)
        return ExpertPool(schema(), counts, slots, top_k, StoredForm(mx.float32, python_twin()), "lru")

    return make


def put(pool: ExpertPool, keys: list[tuple[int, int]]) -> list[tuple[int, int]]:
    slots, evicted = pool.take(len(keys))
    pool.fill(keys, slots)
    return evicted


def test_free_slots_are_used_before_anything_is_evicted(make_pool) -> None:
    pool = make_pool(4)
    assert put(pool, [(0, 0), (0, 1), (1, 0), (1, 1)]) == []
    assert pool.free == 0
    assert put(pool, [(0, 2)]) == [(0, 0)]
    pool.check()


def test_a_slot_handed_out_is_the_one_of_the_expert_that_left(make_pool) -> None:
    pool = make_pool(4)
    put(pool, [(0, 0), (0, 1), (1, 0), (1, 1)])
    slot = pool.table[0, 0]
    slots, evicted = pool.take(1)
    assert (slots, evicted) == ([slot], [(0, 0)])
    assert (0, 0) not in pool.table
    pool.give_back(slots)
    pool.check()
    assert pool.free == 1


def test_a_pinned_expert_keeps_its_slot(make_pool) -> None:
    pool = make_pool(4)
    put(pool, [(0, 0), (0, 1), (1, 0), (1, 1)])
    pool.pinned.update([(0, 0), (0, 1)])
    assert put(pool, [(1, 2), (1, 3)]) == [(1, 0), (1, 1)]
    pool.check()


def test_a_pool_is_whole_only_with_a_slot_for_every_expert(make_pool) -> None:
    assert not make_pool(11).whole
    assert make_pool(12).whole


@pytest.mark.parametrize("damage", ["two experts in a slot", "lost slot", "occupancy", "pinned stranger"])
def test_check_sees_tables_that_contradict_each_other(make_pool, damage) -> None:
    pool = make_pool(4)
    put(pool, [(0, 0), (1, 1)])
    pool.check()
    if damage == "two experts in a slot":
        pool.table[0, 0] = pool.table[1, 1]
    elif damage == "lost slot":
        pool.take(1)
    elif damage == "occupancy":
        pool.occupancy[0] += 1
    else:
        pool.pinned.add((0, 5))
    with pytest.raises(AssertionError):
        pool.check()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_the_tables_hold_after_every_random_operation(make_pool, data) -> None:
    slots = data.draw(st.integers(4, 12))
    pool = make_pool(slots)
    for _ in range(data.draw(st.integers(1, 25))):
        layer = data.draw(st.integers(0, 1))
        wanted = data.draw(st.sets(st.integers(0, 5), min_size=1, max_size=2))
        pool.pinned.clear()
        hits = [(layer, expert) for expert in wanted if (layer, expert) in pool.table]
        for key in hits:
            pool.policy.touch(key)
        pool.pinned.update(hits)
        kept = {key: pool.table[key] for key in hits}
        missing = [(layer, expert) for expert in wanted if (layer, expert) not in pool.table]
        taken, evicted = pool.take(len(missing))
        assert not set(evicted) & set(hits)
        assert not set(taken) & set(pool.table.values())
        if data.draw(st.booleans()):
            pool.fill(missing, taken)
            pool.pinned.update(missing)
        else:
            pool.give_back(taken)
        pool.check()
        assert {key: pool.table[key] for key in hits} == kept
