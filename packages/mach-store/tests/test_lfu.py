from mach_store.eviction.lfu import LfuPolicy


def test_the_expert_used_least_often_goes_first_however_late_it_was_used() -> None:
    policy = LfuPolicy({0: 0, 1: 0}, half_life=1000)
    for key in [(0, 0), (1, 0), (0, 1)]:
        policy.insert(key)
    policy.touch((0, 0))
    policy.touch((1, 0))
    assert policy.candidates(3, ()) == [(0, 1), (0, 0), (1, 0)]


def test_old_uses_count_for_less_than_newer_ones() -> None:
    policy = LfuPolicy({0: 0}, half_life=4)
    policy.insert((0, 0))
    for _ in range(9):
        policy.touch((0, 0))
    policy.insert((0, 1))
    for _ in range(20):
        policy.touch((0, 1))
    # Ten uses twenty uses ago are worth a third of one now.
    policy.insert((0, 2))
    assert policy.victim(()) == (0, 0)


def test_what_a_prompt_needed_stays_though_it_was_touched_once() -> None:
    policy = LfuPolicy({0: 0, 1: 0}, half_life=100)
    for key in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        policy.insert(key)
    policy.touch((0, 1))
    policy.heard(0, {0: 40, 5: 10})
    # A layer's prompt does not age the counts of the layers before it.
    policy.heard(1, {1: 40, 6: 10})
    assert set(policy.candidates(2, ())) == {(0, 1), (1, 0)}
    policy.remove((1, 0))
    policy.insert((1, 6))
    policy.insert((1, 7))
    assert policy.victim({(0, 1)}) == (1, 7)


def test_an_expert_that_comes_back_has_its_history() -> None:
    policy = LfuPolicy({0: 0}, half_life=1000)
    policy.insert((0, 0))
    for _ in range(5):
        policy.touch((0, 0))
    policy.remove((0, 0))
    policy.insert((0, 1))
    policy.touch((0, 1))
    policy.insert((0, 0))
    assert policy.victim(()) == (0, 1)
