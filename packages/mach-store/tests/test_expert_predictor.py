import random

from mach_store.expert_predictor import CANDIDATES, LEAST, REST, WINDOW, ExpertPredictor

LAYERS, EXPERTS = 3, 12


def run(predictor, tokens, follow, *, layers=1):
    """Routes through the layers; returns how often an expert was given, and how often it was then used."""
    given = used = 0
    ids, expected = [0, 1], []
    for step in range(tokens * layers):
        layer = step % layers
        predictor.observe(layer, ids)
        given, used = given + len(expected), used + len(set(expected) & set(ids))
        expected = predictor.guess(layer, ids, (), (), 4)
        ids = follow(ids)
    return given, used


def always(ids):
    return [(5 * expert + 1) % EXPERTS for expert in ids]


def test_what_always_follows_is_given_and_used() -> None:
    predictor = ExpertPredictor(LAYERS, EXPERTS)
    # While chances are still rising to what they are, right and wrong ones pass through the same classes.
    run(predictor, 400, always, layers=LAYERS)
    given, used = run(predictor, 400, always, layers=LAYERS)
    assert given > 2 * 0.9 * 400 * LAYERS
    assert used / given > 0.95


def test_chance_is_not_worth_a_read() -> None:
    chance = random.Random(1)
    predictor = ExpertPredictor(LAYERS, EXPERTS)
    given, _ = run(predictor, 400, lambda ids: chance.sample(range(EXPERTS), 2), layers=LAYERS)
    judged = sum(predictor.score(layer).judged for layer in range(LAYERS))
    # Two of twelve are used: sixteen judged candidates in a row are half right by a rare accident.
    assert given < 0.02 * judged


def test_nothing_is_given_before_a_class_has_been_judged() -> None:
    predictor = ExpertPredictor(1, EXPERTS)
    for step in range(LEAST):
        predictor.observe(0, [3])
        assert predictor.guess(0, [3], (), (), 4) == [], step
    # Its chance rises from class to class meanwhile; in the end it stands.
    for _ in range(400):
        predictor.observe(0, [3])
        last = predictor.guess(0, [3], (), (), 4)
    assert last == [3]


def test_what_is_in_memory_or_beyond_the_room_is_not_given() -> None:
    predictor = ExpertPredictor(LAYERS, EXPERTS)
    run(predictor, 200, lambda ids: [2, 5], layers=LAYERS)
    predictor.observe(0, [2, 5])
    assert predictor.guess(0, [2, 5], (), (), 4) == [2, 5]
    assert predictor.guess(0, [2, 5], (), (), 1) == [2]
    assert predictor.guess(0, [2, 5], (), {2}, 4) == [5]
    assert predictor.guess(0, [2, 5], (), {2, 5}, 4) == []


def test_a_gate_shuts_when_routes_change_and_opens_again_when_they_return() -> None:
    predictor = ExpertPredictor(1, EXPERTS)
    chance = random.Random(2)
    run(predictor, 400, always)
    assert predictor.is_open(0)
    run(predictor, 3000, lambda ids: chance.sample(range(EXPERTS), 2))
    before = predictor.score(0).judged
    assert not predictor.is_open(0)
    # While it is shut one pass in REST is looked at.
    run(predictor, 10 * REST, lambda ids: chance.sample(range(EXPERTS), 2))
    assert predictor.score(0).judged - before <= 11 * CANDIDATES
    given, used = run(predictor, 3000, always)
    assert given > 1000
    assert used / given > 0.9


def test_somebody_elses_ranking_is_judged_place_by_place() -> None:
    predictor = ExpertPredictor(1, EXPERTS)
    chance = random.Random(3)
    for _ in range(2 * WINDOW):
        # The first of the ranking is always right, the others hardly ever.
        ids = [chance.randrange(EXPERTS)]
        predictor.observe(0, ids)
        following = chance.randrange(EXPERTS)
        ranked = [following, *(expert for expert in range(EXPERTS) if expert != following)]
        given = predictor.guess(0, (), ranked, (), 8)
        predictor.observe(0, [following])
    assert given == [following]


def test_a_pass_that_was_given_up_is_not_judged() -> None:
    predictor = ExpertPredictor(1, EXPERTS)
    run(predictor, 100, lambda ids: [2, 5])
    judged = predictor.score(0).judged
    predictor.guess(0, [2, 5], (), (), 4)
    predictor.forget_pass()
    predictor.observe(0, [7, 8])
    assert predictor.score(0).judged == judged
