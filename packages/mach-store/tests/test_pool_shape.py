import pytest

from mach_store.eviction import POLICIES
from mach_store.pool_shape import PoolShape


def shape(slots: int) -> PoolShape:
    layers = dict.fromkeys(range(4), 10)
    return PoolShape(layers=layers, slots=slots, slot_bytes=100, top_k=2, policy="lru")


def test_a_pool_is_between_one_tokens_experts_and_all() -> None:
    assert (shape(20).least, shape(20).most) == (8, 40)


def test_a_layer_keeps_half_of_its_share_and_one_tokens_experts_at_least() -> None:
    assert (shape(32).share, shape(32).floor) == (8, 4)
    assert (shape(9).share, shape(9).floor) == (2, 2)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_that_hears_of_a_part_has_that_part_of_the_floors(policy) -> None:
    sized = PoolShape(layers={3: 64, 5: 64}, slots=64, slot_bytes=1, top_k=2, policy=policy)
    assert sized.new_policy().name == policy
    assert (sized.floors(), sized.floors(0.25)) == ({3: 16, 5: 16}, {3: 4, 5: 4})
    part = sized.new_policy(0.25)
    for expert in range(4):
        part.insert((3, expert))
        part.insert((5, expert))
    part.insert((5, 4))
    # Layer 3 is at its floor, layer 5 above it by one.
    assert part.candidates(1, ())[0][0] == 5
