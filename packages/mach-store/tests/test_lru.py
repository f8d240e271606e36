from hypothesis import given
from hypothesis import strategies as st

from mach_store.eviction.lru import LruPolicy


def filled(floors: dict[int, int], keys: list[tuple[int, int]]) -> LruPolicy:
    policy = LruPolicy(floors)
    for key in keys:
        policy.insert(key)
    return policy


def test_the_least_recently_used_expert_of_all_layers_goes_first() -> None:
    policy = filled({0: 0, 1: 0}, [(0, 1), (1, 1), (0, 2)])
    assert policy.victim(()) == (0, 1)
    policy.touch((0, 1))
    assert policy.victim(()) == (1, 1)
    policy.remove((1, 1))
    assert policy.victim(()) == (0, 2)


def test_a_pinned_expert_is_passed_over() -> None:
    policy = filled({0: 0, 1: 0}, [(0, 1), (0, 2), (1, 1)])
    assert policy.victim({(0, 1)}) == (0, 2)
    assert policy.victim({(0, 1), (0, 2)}) == (1, 1)


def test_there_is_no_victim_when_everything_is_pinned_or_nothing_is_there() -> None:
    policy = filled({0: 0}, [(0, 1)])
    assert policy.victim({(0, 1)}) is None
    assert LruPolicy({0: 0}).victim(()) is None


def test_a_layer_at_its_floor_gives_nothing_while_another_can() -> None:
    policy = filled({0: 2, 1: 2}, [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3)])
    assert policy.victim(()) == (1, 1)
    policy.remove((1, 1))
    # Both are at their floors now: the oldest of all goes.
    assert policy.victim(()) == (0, 1)


def test_floors_yield_when_the_others_are_pinned() -> None:
    policy = filled({0: 2, 1: 1}, [(0, 1), (0, 2), (1, 1), (1, 2)])
    assert policy.victim({(1, 1), (1, 2)}) == (0, 1)


class NaiveLru:
    """One list, oldest first."""

    def __init__(self, floors: dict[int, int]) -> None:
        self.floors, self.order = floors, []

    def victim(self, pinned):
        for respect in (True, False):
            for layer, expert in self.order:
                held = sum(key[0] == layer for key in self.order)
                if (layer, expert) not in pinned and not (respect and held <= self.floors[layer]):
                    return layer, expert
        return None


KEYS = st.tuples(st.integers(0, 2), st.integers(0, 5))


@given(
    floors=st.tuples(*[st.integers(0, 3)] * 3),
    trace=st.lists(st.tuples(KEYS, st.sets(KEYS, max_size=4)), max_size=120),
    room=st.integers(1, 8),
)
def test_a_random_trace_replays_as_in_a_naive_model(floors, trace, room) -> None:
    limits = dict(enumerate(floors))
    policy, naive = LruPolicy(limits), NaiveLru(limits)
    for key, pinned in trace:
        if key in naive.order:
            policy.touch(key)
            naive.order.remove(key)
            naive.order.append(key)
            continue
        if len(naive.order) >= room:
            victim = policy.victim(pinned)
            assert victim == naive.victim(pinned)
            assert victim not in pinned
            if victim is None:
                continue
            policy.remove(victim)
            naive.order.remove(victim)
        policy.insert(key)
        naive.order.append(key)
