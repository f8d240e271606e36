"""The native order of eviction beside the policies; with passes: `test_expert_stream`."""

import os

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lme_expert_stream
from mach_store.eviction import POLICIES, make_policy

LAYERS, EXPERTS = 3, 6
SLOTS = LAYERS * EXPERTS
KEYS = st.tuples(st.integers(0, LAYERS - 1), st.integers(0, EXPERTS - 1))


def code(key) -> int:
    return key[0] * EXPERTS + key[1]


def stream_of(rule, *, layers=LAYERS):
    """An expert stream with one pool, whose passes could never run."""
    stream = lme_expert_stream.ExpertStream(threads=1, direct=False)
    bank = mx.zeros((SLOTS, 4))
    mx.eval(bank)
    pool = stream.add_pool([bank], [16], [False], memories=rule.memories, by_distance=rule.by_distance)
    with open(os.devnull) as file:
        for _ in range(layers):
            stream.add_layer(pool, EXPERTS, [file.fileno()] * EXPERTS, [0] * EXPERTS, None)
    return stream


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_order_is_the_policys_equal_ranks_included(name, data) -> None:
    floors = {layer: data.draw(st.integers(0, 3)) for layer in range(LAYERS)}
    policy = make_policy(name, floors, experts=EXPERTS, top_k=2)
    held = set()
    for _ in range(data.draw(st.integers(0, 30))):
        event = data.draw(st.sampled_from(["use"] * 4 + ["remove", "hear"]))
        if event == "use":
            key = data.draw(KEYS)
            (policy.touch if key in held else policy.insert)(key)
            held.add(key)
        elif event == "remove" and held:
            key = data.draw(st.sampled_from(sorted(held)))
            policy.remove(key)
            held.remove(key)
        else:
            # Equal counts: equal values.
            policy.heard(data.draw(st.integers(0, LAYERS - 1)), dict.fromkeys(range(EXPERTS), 1))
    policy.kept = frozenset(data.draw(st.sets(KEYS, max_size=4)))
    pinned = data.draw(st.sets(st.sampled_from(sorted(held)), max_size=4)) if held else set()

    stream = stream_of(policy.rule)
    slot_of = {key: slot for slot, key in enumerate(sorted(held))}
    stream.set(0, list(slot_of.values()), list(map(code, slot_of)))
    stream.floors(0, list(floors.values()))
    stream.keep(0, list(map(code, policy.kept)))
    stream.pin(0, [slot_of[key] for key in pinned])
    stream.recall(0, [(layer, *policy.standing(layer, EXPERTS)) for layer in range(LAYERS)], policy.latest)
    for count in (0, 1, 3, SLOTS):
        assert stream.next(0, count) == list(map(code, policy.candidates(count, pinned)))
    stream.unpin()
    assert stream.next(0, SLOTS) == list(map(code, policy.candidates(SLOTS, ())))


RULE = make_policy("lookahead", {0: 0, 1: 0}, experts=EXPERTS, top_k=2).rule
TIMED = make_policy("lru", {0: 0, 1: 0}, experts=EXPERTS, top_k=2).rule


@pytest.mark.parametrize("memories", [[(0.5, 1.0)], [(float("nan"), 1.0)], [(1.1, -1.0)], [(1.1, 2.0)]])
def test_a_rule_that_no_policy_has_is_refused(memories) -> None:
    with pytest.raises(ValueError, match="a memory's growth is 1 or more, and its weight 0 to 1"):
        stream_of(RULE._replace(memories=memories))


@pytest.mark.parametrize(
    "layer",
    [
        (0, [1.0], [0.0] * 12),
        (0, [1.0, 1.0], [0.0] * 11),
        (0, [1.0, 1.0], [0.0] * 6),
        (0, [1.0, 0.5], [0.0] * 12),
        (0, [1.0, float("inf")], [0.0] * 12),
        (0, [1.0, 1.0], [0.0] * 11 + [float("nan")]),
        (0, [1.0, 1.0], [0.0] * 11 + [-1.0]),
        (0, [1.0, 1.0], [0.0] * 11 + [2.0**501]),
    ],
)
def test_numbers_that_counting_never_gives_are_refused(layer) -> None:
    stream = stream_of(RULE)
    with pytest.raises(ValueError, match="a worth"):
        stream.recall(0, [layer], 0)
    assert stream.next(0, SLOTS) == []


def test_a_last_use_in_the_future_is_refused() -> None:
    stream = stream_of(TIMED)
    stream.recall(0, [(0, [3.0], [3.0] * 6)], None)
    with pytest.raises(ValueError, match="a worth or count"):
        stream.recall(0, [(0, [3.0], [4.0] * 6)], None)


def test_slots_keys_and_layers_that_do_not_exist_are_refused() -> None:
    stream = stream_of(RULE)
    for wrong in (-1, SLOTS, 1 << 30):
        for call in (stream.pin, stream.offer):
            with pytest.raises(IndexError, match=f"slot {wrong} is not in the pool"):
                call(0, [wrong])
        with pytest.raises(IndexError, match=f"slot {wrong}"):
            stream.set(0, [wrong], [0])
        with pytest.raises(IndexError, match=f"key {wrong} is not the pool's"):
            stream.keep(0, [wrong])
    for wrong in (-2, LAYERS * EXPERTS):
        with pytest.raises(IndexError, match=f"key {wrong}"):
            stream.set(0, [0], [wrong])
    with pytest.raises(IndexError):
        stream.recall(0, [(LAYERS, [1.0, 1.0], [0.0] * 12)], None)
    with pytest.raises(IndexError, match="no such layer"):
        stream.recall(0, [], LAYERS)
    with pytest.raises(ValueError, match="a floor for each layer"):
        stream.floors(0, [1])
    for call in (stream.keys, lambda pool: stream.next(pool, 1)):
        with pytest.raises(IndexError):
            call(1)


def test_an_expert_in_two_slots_and_a_slot_freed_twice_are_refused() -> None:
    stream = stream_of(RULE)
    stream.set(0, [3], [7])
    stream.set(0, [3], [7])
    with pytest.raises(ValueError, match="the expert is in another slot"):
        stream.set(0, [4], [7])
    stream.offer(0, [4])
    for slot in (3, 4):
        with pytest.raises(ValueError, match="only a slot that holds nothing"):
            stream.offer(0, [slot])
    stream.set(0, [4], [-1])
    stream.offer(0, [4])
    assert stream.keys(0)[:5] == [-1, -1, -1, 7, -1]
