from mach_store.eviction import make_policy
from mach_store.eviction.lookahead import LookaheadPolicy

LAYERS = 4


def policy_of(**changed) -> LookaheadPolicy:
    given = {"top_k": 1, "half_life": 100.0, "short_half_life": 2.0, "short_share": 0.3}
    return LookaheadPolicy(dict.fromkeys(range(LAYERS), 0), **(given | changed))


def test_of_equally_likely_experts_the_one_whose_layer_comes_last_goes_first() -> None:
    policy = policy_of(half_life=1e9, short_half_life=1e9)
    for layer in (2, 3, 0, 1):
        policy.insert((layer, 0))
    # After layer 1: layer 1 comes again in four layers, layer 2 in one.
    assert policy.candidates(4, ()) == [(1, 0), (0, 0), (3, 0), (2, 0)]


def test_an_unlikely_expert_of_the_next_layer_goes_before_a_likely_one_of_the_last() -> None:
    policy = policy_of()
    for layer in range(LAYERS):
        policy.insert((layer, 0))
    policy.insert((0, 1))
    for _ in range(10):
        for layer in range(LAYERS):
            policy.touch((layer, 0))
    # Layer 0 is next, but its expert 1 was used once in eleven tokens.
    assert policy.victim(()) == (0, 1)


def replay(policy, slots, tokens) -> float:
    """Hit rate of a bank under `policy`; tokens: for each, the experts of each layer."""
    held: set[tuple[int, int]] = set()
    hits = total = 0
    for token in tokens:
        for layer, experts in enumerate(token):
            keys = [(layer, expert) for expert in experts]
            missing = [key for key in keys if key not in held]
            hits, total = hits + len(keys) - len(missing), total + len(keys)
            for key in keys:
                if key in held:
                    policy.touch(key)
            for victim in policy.candidates(len(held) + len(missing) - slots, set(keys)):
                policy.remove(victim)
                held.remove(victim)
            for key in missing:
                policy.insert(key)
                held.add(key)
    return hits / total


def test_a_scan_that_is_larger_than_the_bank_is_hit_where_lru_never_hits() -> None:
    # Every layer alternates between two experts: 8 in turn, one slot short. What was used longest ago is just
    # what comes next.
    tokens = [[[step % 2]] * LAYERS for step in range(200)]
    floors = dict.fromkeys(range(LAYERS), 0)
    assert replay(make_policy("lru", floors, experts=2, top_k=1), 7, tokens) == 0
    assert replay(make_policy("lookahead", floors, experts=2, top_k=1), 7, tokens) > 0.5


def test_hot_experts_survive_a_stream_of_cold_ones() -> None:
    # Expert 0 of each layer is used every second token, between them are always new ones.
    tokens = [[[0 if step % 2 else 1 + step // 2 % 20]] * LAYERS for step in range(400)]
    floors = dict.fromkeys(range(LAYERS), 0)
    rates = {
        name: replay(make_policy(name, floors, experts=21, top_k=1), LAYERS + 1, tokens)
        for name in ("lru", "lfu", "lookahead")
    }
    assert rates["lru"] < 0.1
    assert rates["lfu"] > 0.45
    assert rates["lookahead"] > 0.45
