"""Every policy beside a slow one that knows nothing but the history of uses."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mach_store.eviction import POLICIES, LfuPolicy, LookaheadPolicy, LruPolicy

LAYERS, EXPERTS = 3, 6
HALF_LIFE, LONG, SHORT, SHARE, TOP_K = 3.0, 12.0, 2.0, 0.4, 2


def make(name, floors):
    if name == "lru":
        return LruPolicy(floors)
    if name == "lfu":
        return LfuPolicy(floors, HALF_LIFE)
    return LookaheadPolicy(floors, top_k=TOP_K, half_life=LONG, short_half_life=SHORT, short_share=SHARE)


class Naive:
    """All uses, oldest first; what must go first is computed anew each time."""

    def __init__(self, name, floors) -> None:
        self.name, self.floors = name, dict(floors)
        self.now, self.last, self.place = 0, {}, LAYERS - 1
        # For each layer what each use was of: a part of a use for each expert where a prompt was heard.
        self.uses = {layer: [] for layer in range(LAYERS)}
        self.held, self.kept = set(), set()

    def use(self, key) -> None:
        self.now += 1
        self.last[key] = self.now
        self.held.add(key)
        self._count(key[0], [{key[1]: 1.0}])

    def hear(self, layer, counts) -> None:
        uses = sum(counts.values())
        self._count(layer, [{expert: count / uses for expert, count in counts.items()}] * uses)

    def _count(self, layer, uses) -> None:
        self.uses[layer] += uses
        if uses:
            self.place = layer

    def decayed(self, key, half_life) -> float:
        uses = self.uses[key[0]]
        return sum(
            use.get(key[1], 0.0) * 2.0 ** ((time + 1 - len(uses)) / half_life)
            for time, use in enumerate(uses)
        )

    def rank(self, key) -> float:
        if self.name == "lru":
            return self.last[key]
        if self.name == "lfu":
            return self.decayed(key, HALF_LIFE)
        chance = (1 - SHARE) * self.decayed(key, LONG) * (1 - 2 ** (-TOP_K / LONG))
        chance += SHARE * self.decayed(key, SHORT) * (1 - 2 ** (-TOP_K / SHORT))
        ahead = (key[0] - self.place) % LAYERS or LAYERS
        return -(ahead + LAYERS * (1 / min(1.0, max(chance, 1e-12)) - 1))

    def eligible(self, pinned, gone):
        left = self.held - gone
        free = {key for key in left if key not in pinned}
        easy = {key for key in free if key not in self.kept}
        above = {key for key in easy if sum(other[0] == key[0] for other in left) > self.floors[key[0]]}
        return above or easy or free

    def check(self, chosen, count, pinned) -> None:
        gone: set[tuple[int, int]] = set()
        for key in chosen:
            eligible = self.eligible(pinned, gone)
            assert key in eligible
            rank, least = self.rank(key), min(map(self.rank, eligible))
            assert math.isclose(rank, least, rel_tol=1e-9), (key, rank, least)
            gone.add(key)
        assert len(chosen) == count or not self.eligible(pinned, gone)


KEYS = st.tuples(st.integers(0, LAYERS - 1), st.integers(0, EXPERTS - 1))
FLOORS = st.tuples(*[st.integers(0, 3)] * LAYERS).map(lambda floors: dict(enumerate(floors)))


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_random_history_is_answered_as_by_a_naive_model(name, data) -> None:
    floors = data.draw(FLOORS)
    policy, naive = make(name, floors), Naive(name, floors)
    for _ in range(data.draw(st.integers(1, 30))):
        event = data.draw(st.sampled_from(["use"] * 5 + ["evict", "evict", "hear", "floors", "keep"]))
        pinned = data.draw(st.sets(KEYS, max_size=4))
        if event == "use":
            key = data.draw(KEYS)
            (policy.touch if key in naive.held else policy.insert)(key)
            naive.use(key)
        elif event == "evict":
            for key in policy.candidates(data.draw(st.integers(1, 3)), pinned):
                policy.remove(key)
                naive.held.remove(key)
        elif event == "hear":
            layer = data.draw(st.integers(0, LAYERS - 1))
            counts = data.draw(st.dictionaries(st.integers(0, EXPERTS - 1), st.integers(1, 9), min_size=1))
            policy.heard(layer, counts)
            naive.hear(layer, counts)
        elif event == "floors":
            naive.floors = data.draw(FLOORS)
            policy.set_floors(naive.floors)
        else:
            naive.kept = data.draw(st.sets(KEYS, max_size=4))
            policy.kept = frozenset(naive.kept)
        everything = policy.candidates(LAYERS * EXPERTS, pinned)
        naive.check(everything, LAYERS * EXPERTS, pinned)
        count = data.draw(st.integers(0, 4))
        assert policy.candidates(count, pinned) == everything[:count]
        assert policy.victim(pinned) == (everything[0] if everything else None)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=30, deadline=None)
@given(
    floors=FLOORS,
    uses=st.lists(KEYS, min_size=1, max_size=40),
    pinned=st.sets(KEYS, max_size=4),
    kept=st.sets(KEYS, max_size=4),
)
def test_candidates_are_what_victim_and_remove_in_turn_would_give(name, floors, uses, pinned, kept) -> None:
    policy, held = make(name, floors), set()
    policy.kept = kept
    for key in uses:
        (policy.touch if key in held else policy.insert)(key)
        held.add(key)
    expected = policy.candidates(LAYERS * EXPERTS, pinned)
    one_by_one = []
    while (victim := policy.victim(pinned)) is not None:
        policy.remove(victim)
        one_by_one.append(victim)
    assert one_by_one == expected
    assert set(expected) == held - pinned


@pytest.mark.parametrize("name", POLICIES)
def test_asking_changes_nothing(name) -> None:
    asked, silent = (make(name, dict.fromkeys(range(LAYERS), 1)) for _ in range(2))
    for step in range(60):
        key = (step % LAYERS, step * step % 4)
        for policy in (asked, silent):
            (policy.touch if step >= 4 * LAYERS else policy.insert)((step % LAYERS, step // LAYERS % 4))
            if step >= 4 * LAYERS:
                policy.touch(key)
        asked.candidates(5, {key})
        asked.victim(())
    assert asked.candidates(99, ()) == silent.candidates(99, ())


@pytest.mark.parametrize("name", POLICIES)
def test_a_kept_expert_goes_when_nothing_else_is_left_and_floors_do_not_save_the_others(name) -> None:
    policy = make(name, {0: 2, 1: 0, 2: 0})
    for key in [(0, 0), (0, 1), (1, 0)]:
        policy.insert(key)
    policy.kept = {(1, 0)}
    assert set(policy.candidates(2, ())) == {(0, 0), (0, 1)}
    assert policy.candidates(3, ())[2] == (1, 0)
