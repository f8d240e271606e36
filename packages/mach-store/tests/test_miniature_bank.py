from mach_store.eviction import LruPolicy
from mach_store.miniature_bank import MiniatureBank


def bank(slots: int, layers: int = 2) -> MiniatureBank:
    return MiniatureBank(slots, LruPolicy(dict.fromkeys(range(layers), 0)))


def test_what_is_missing_is_counted_and_then_held() -> None:
    small = bank(3)
    assert small.use([(0, 1), (0, 2)]) == 2
    assert small.use([(0, 1), (0, 2)]) == 0
    assert small.use([(0, 2), (0, 3)]) == 1
    assert small.held == {(0, 1), (0, 2), (0, 3)}
    small.check()


def test_the_policy_says_who_leaves() -> None:
    small = bank(3)
    small.use([(0, 1), (0, 2)])
    small.use([(1, 1)])
    small.use([(0, 1)])
    assert small.use([(1, 2)]) == 1
    assert small.held == {(0, 1), (1, 1), (1, 2)}
    small.check()


def test_no_key_of_a_pass_leaves_for_another_of_it() -> None:
    small = bank(3)
    small.use([(0, 1), (0, 2), (0, 3)])
    small.use([(0, 1), (0, 4), (0, 5)])
    assert small.held == {(0, 1), (0, 4), (0, 5)}


def test_a_pass_that_does_not_fit_takes_what_room_there_is() -> None:
    small = bank(2)
    assert small.use([(0, 1), (0, 2), (0, 3)]) == 3
    assert small.held == {(0, 1), (0, 2)}
    assert small.use([(0, 1), (0, 2), (0, 3)]) == 1
    small.check()
