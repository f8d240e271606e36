import tracemalloc
from collections.abc import Iterator
from itertools import islice

import mlx.core as mx
import numpy as np
import pytest

from mach_store.bank_cache import BankCache
from mach_store.eviction import DEFAULT_POLICY, POLICIES
from mach_store.expert_arrays import slot_bytes
from mach_store.miss_ratio_curve import MissRatioCurve
from mach_store.pool_shape import PoolShape
from mach_store.routed_pass import RoutedPass
from mach_store.scatter_reader import python_twin

FOREVER = float("inf")


def traffic(seed: int, layers: int, experts: int, k: int, skew: float) -> Iterator[RoutedPass]:
    """Tokens without end: Zipf over each layer's own ranks, drawn toward the experts of the token before."""
    random = np.random.default_rng(seed)
    weights = -skew * np.log1p(np.argsort(random.random((layers, experts)), axis=1))
    recent = np.zeros((layers, experts))
    while True:
        drawn = weights + recent + random.gumbel(size=(layers, experts))
        chosen = np.argsort(-drawn, axis=1)[:, :k]
        recent[:] = 0
        np.put_along_axis(recent, chosen, 1.0, axis=1)
        for layer in range(layers):
            yield RoutedPass(layer, chosen[layer : layer + 1].astype(np.uint16))


def shape(layers: int, experts: int, slots: int, top_k: int, policy: str = DEFAULT_POLICY) -> PoolShape:
    counts = dict.fromkeys(range(layers), experts)
    return PoolShape(layers=counts, slots=slots, slot_bytes=1000, top_k=top_k, policy=policy)


def rates(curve: MissRatioCurve) -> list[float]:
    found = [point.hit_rate for point in curve.points()]
    assert None not in found
    return [rate for rate in found if rate is not None]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("skew", [0.4, 1.2])
def test_with_every_key_watched_the_curve_is_what_real_banks_do(schema, file_source, skew, policy) -> None:
    layers, experts, k, slots = 3, 16, 2, 12
    passes = list(islice(traffic(1, layers, experts, k, skew), 150 * layers))
    curve = MissRatioCurve([shape(layers, experts, slots, k, policy)], half_life_tokens=FOREVER)
    curve.feed(passes)
    assert (curve.sample_rate, curve.tokens, curve.references) == (1.0, 150, 150 * layers * k)
    first = len({(layer, expert) for layer, ids in passes for expert in ids[0].tolist()})
    for point in curve.points():
        source = file_source(dict.fromkeys(range(layers), schema()), experts)
        size = slot_bytes(schema(), mx.float32)
        budget = point.bank_slots * size
        bank = BankCache(
            source, python_twin(), budget_bytes=budget, top_k=k, compute=mx.float32, policy=policy
        )
        for layer, ids in passes:
            bank.release()
            bank.layers[layer].acquire(sorted(ids[0].tolist()))
        total = bank.totals()
        assert point.hit_rate == pytest.approx(total.hits / (total.hits + total.misses - first))
    curve.check()


@pytest.mark.parametrize("skew", [0.6, 1.0])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_third_of_the_keys_tells_the_curve_to_within_a_few_hundredths(policy, skew) -> None:
    """The smaller the bank, the more depends on whether a layer's few hot experts are watched."""
    passes = list(islice(traffic(2, 12, 96, 4, skew), 12 * 400))
    curves = []
    for most_keys in (12 * 96, 12 * 32):
        curve = MissRatioCurve([shape(12, 96, 288, 4, policy)], most_keys=most_keys, half_life_tokens=FOREVER)
        curve.feed(passes)
        curve.check()
        curves.append(curve)
    exact, sampled = curves
    assert sampled.sample_rate == pytest.approx(1 / 3)
    assert rates(exact)[0] < rates(exact)[-1] - 0.2, "the sizes differ by more than the error allowed"
    errors = np.abs(np.subtract(rates(sampled), rates(exact)))
    assert (errors <= [0.065, 0.035, 0.025, 0.02]).all(), errors


def test_a_bigger_bank_never_does_worse_under_lru() -> None:
    curve = MissRatioCurve([shape(6, 32, 48, 4, "lru")])
    curve.feed(islice(traffic(3, 6, 32, 4, 0.8), 6 * 200))
    assert rates(curve) == sorted(rates(curve))


@pytest.mark.parametrize("policy", POLICIES)
def test_memory_does_not_grow_with_traffic(policy) -> None:
    """5,120 keys, of which 1,024 are watched; the routes are made as they are fed."""
    layers, experts = 10, 512
    every = np.arange(experts, dtype=np.uint16).reshape(-1, 1, 8)
    tracemalloc.start()
    try:
        curve = MissRatioCurve([shape(layers, experts, 1200, 8, policy)])
        assert 1000 < curve.sampled_keys <= 1024
        curve.feed(RoutedPass(layer, ids) for ids in every for layer in range(layers))
        full, _ = tracemalloc.get_traced_memory()
        curve.feed(islice(traffic(5, layers, experts, 8, 0.2), layers * 60))
        later, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert full < 2_000_000
    assert later < full + 200_000


def test_late_traffic_counts_more_than_early() -> None:
    curve = MissRatioCurve([shape(1, 64, 8, 4)], half_life_tokens=50)
    scattered = [
        RoutedPass(0, np.array([[(4 * n + i) % 64 for i in range(4)]], np.uint16)) for n in range(400)
    ]
    for one in scattered:
        curve.feed([one])
    assert rates(curve)[1] < 0.01
    for _ in range(400):
        curve.feed([RoutedPass(0, np.array([[1, 2, 3, 4]], np.uint16))])
    assert rates(curve)[1] > 0.99


def test_the_first_reference_to_a_key_counts_neither_way() -> None:
    curve = MissRatioCurve([shape(2, 8, 8, 2)])
    curve.feed([RoutedPass(layer, np.array([[0, 1]], np.uint16)) for layer in (0, 1)])
    assert [point.hit_rate for point in curve.points()] == [None] * 4
    curve.feed([RoutedPass(layer, np.array([[0, 1]], np.uint16)) for layer in (0, 1)])
    assert rates(curve) == [1.0] * 4


def test_what_does_not_count_still_changes_what_is_held() -> None:
    pair, other = np.array([[0, 1]], np.uint16), np.array([[2, 3]], np.uint16)
    curve = MissRatioCurve([shape(1, 8, 2, 2)], sizes=(1.0,))
    curve.feed([RoutedPass(0, pair), RoutedPass(0, other)])
    curve.feed([RoutedPass(0, pair)], counts=False)
    assert (curve.tokens, curve.references, curve.points()[0].hit_rate) == (2, 4, None)
    curve.feed([RoutedPass(0, pair)])
    assert rates(curve) == [1.0]


def test_sizes_end_at_all_experts_and_at_one_tokens() -> None:
    points = MissRatioCurve([shape(4, 16, 24, 4)], sizes=(0.5, 1, 2, 4)).points()
    assert [point.bank_slots for point in points] == [16, 24, 48, 64]
    assert [point.limit for point in points] == ["one_token", None, None, "all_experts"]
    assert [point.bank_bytes for point in points] == [16_000, 24_000, 48_000, 64_000]


def test_a_bank_of_all_experts_misses_nothing_twice() -> None:
    curve = MissRatioCurve([shape(4, 16, 40, 4)])
    curve.feed(islice(traffic(6, 4, 16, 4, 0.1), 4 * 100))
    assert rates(curve)[3] == 1.0
    assert rates(curve)[1] < 0.9


def test_pools_of_different_records_add_up() -> None:
    """One pool's layers always miss, the other's never do; both are asked equally often."""
    pools = [
        PoolShape(layers={0: 40}, slots=4, slot_bytes=10, top_k=2, policy=DEFAULT_POLICY),
        PoolShape(layers={1: 8}, slots=8, slot_bytes=1, top_k=2, policy=DEFAULT_POLICY),
    ]
    curve = MissRatioCurve(pools, sizes=(1.0,), half_life_tokens=FOREVER)
    for n in range(420):
        curve.feed([RoutedPass(0, np.array([[2 * n % 40, (2 * n + 1) % 40]], np.uint16))])
        curve.feed([RoutedPass(1, np.array([[0, 1]], np.uint16))])
    (point,) = curve.points()
    assert (point.bank_slots, point.bank_bytes) == (12, 48)
    assert point.hit_rate == pytest.approx(838 / (838 + 800))


def test_a_pass_of_several_tokens_needs_each_expert_once() -> None:
    curve = MissRatioCurve([shape(1, 16, 8, 2)])
    curve.feed([RoutedPass(0, np.array([[3, 1], [1, 2], [2, 3]], np.uint16))])
    assert curve.references == 3


def test_which_keys_are_watched_is_the_same_every_time_and_differs_between_layers() -> None:
    def watched() -> list[list[int]]:
        curve = MissRatioCurve([shape(3, 64, 48, 4)], most_keys=24)
        return [sorted(experts) for pool in curve._pools for experts in pool.key_of.values()]

    assert watched() == watched()
    assert [len(experts) for experts in watched()] == [8, 8, 8]
    assert len({tuple(experts) for experts in watched()}) == 3
