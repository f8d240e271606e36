from mach_store.eviction import LruPolicy
from mach_store.pool_shape import PoolShape


def shape(slots: int) -> PoolShape:
    layers = dict.fromkeys(range(4), 10)
    return PoolShape(layers=layers, slots=slots, slot_bytes=100, top_k=2, policy="lru")


def test_a_pool_is_between_one_tokens_experts_and_all() -> None:
    assert (shape(20).least, shape(20).most) == (8, 40)


def test_a_layer_keeps_half_of_its_share_and_one_tokens_experts_at_least() -> None:
    assert (shape(32).share, shape(32).floor) == (8, 4)
    assert (shape(9).share, shape(9).floor) == (2, 2)


def test_a_policy_that_hears_of_a_part_is_made_for_that_part(monkeypatch) -> None:
    asked = []

    def made(name, floors, *, experts, top_k):
        asked.append((name, floors, experts, top_k))
        return LruPolicy(floors)

    monkeypatch.setattr("mach_store.pool_shape.make_policy", made)
    sized = PoolShape(layers={3: 64, 5: 64}, slots=64, slot_bytes=1, top_k=2, policy="lfu")
    sized.new_policy()
    sized.new_policy(0.25)
    assert asked == [("lfu", {3: 16, 5: 16}, 128, 2), ("lfu", {3: 4, 5: 4}, 32, 0.5)]
