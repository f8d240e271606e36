import pytest

from mach_store.eviction import DEFAULT_POLICY, POLICIES, make_policy


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_of_the_table_is_made_under_its_name(name) -> None:
    policy = make_policy(name, {0: 1, 1: 1}, experts=8, top_k=2)
    assert policy.name == name
    policy.insert((1, 3))
    assert policy.candidates(4, ()) == [(1, 3)]


def test_the_default_is_one_of_them() -> None:
    assert DEFAULT_POLICY in POLICIES
