import numpy as np

from mach_store.hot_experts import HALF_LIFE_PER_EXPERT, HotExperts


def routes(*experts: int) -> np.ndarray:
    return np.array(experts, np.uint16).reshape(-1, 1)


def test_the_experts_with_most_routes_are_hottest_and_equals_stand_by_number() -> None:
    hot = HotExperts({3: 4, 5: 2})
    hot.count(3, routes(2, 2, 2, 1, 0))
    hot.count(3, np.array([[2, 1], [1, 0]], np.uint16))
    hot.count(5, routes(1))
    hot.age()
    assert hot.hottest(3, 4) == [2, 1, 0]
    assert hot.hottest(3, 1) == [2]
    assert hot.hottest(5, 2) == [1]


def test_nothing_is_hot_before_the_first_ageing_or_without_routes() -> None:
    hot = HotExperts({0: 4})
    hot.count(0, routes(1))
    assert hot.hottest(0, 4) == []
    assert HotExperts({0: 4}).hottest(0, 4) == []


def test_old_heat_fades_by_the_layers_own_routes() -> None:
    half_life = 4 * HALF_LIFE_PER_EXPERT
    hot = HotExperts({0: 4, 1: 4})
    hot.count(0, routes(*[0] * 10))
    hot.count(1, routes(*[0] * 10))
    hot.age()
    for _ in range(8):
        hot.count(0, routes(*[1] * (half_life // 2)))
        hot.age()
    # Four half-lives: ten routes are worth less than one now, and the newer ones more.
    hot.count(0, routes(2))
    hot.age()
    assert hot.hottest(0, 4) == [1, 2, 0]
    assert hot.hottest(1, 4) == [0]


def test_equal_counts_before_and_after_are_ordered_by_age() -> None:
    hot = HotExperts({0: 4})
    for expert in (2, 1):
        hot.count(0, routes(*[expert] * 30))
        hot.age()
    assert hot.hottest(0, 2) == [1, 2]
