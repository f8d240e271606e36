import pytest

from mach_decode import hot_pins
from mach_decode.errors import GenerationCancelledError, ResidencyError
from mach_decode.hot_pins import PINNED_SHARE
from mach_decode.loader import load_moe
from mach_decode.request import GenerationRequest

PROMPT = tuple(range(100, 160))


@pytest.fixture
def pinning(monkeypatch, open_engine):
    """A function (slots) → an engine that pins hot experts."""
    monkeypatch.setenv("LME_DECODE_RESIDENCY", "pin")
    return open_engine


def answer(engine, tokens=4, cancelled=lambda: False) -> list[int]:
    request = GenerationRequest(prompt=PROMPT, max_tokens=tokens)
    return [event.token for event in engine.generate(request, cancelled) if event.token is not None]


def kept(engine) -> set[tuple[int, int]]:
    return {key for view in engine.store.layers.values() for key in view.pool.policy.kept}


def each(engine) -> int:
    view = next(iter(engine.store.layers.values()))
    return int(PINNED_SHARE * view.pool.share)


def test_nothing_is_pinned_unless_asked_for(open_engine) -> None:
    engine = open_engine(18)
    answer(engine)
    assert engine.hot_pins is None
    assert engine.store.stats()["hot_experts_pinned"] == 0


def test_each_layers_hottest_experts_are_pinned_after_the_prompt(pinning) -> None:
    engine = pinning(18)
    request = GenerationRequest(prompt=PROMPT, max_tokens=4)
    seen = [(event.token is not None, len(kept(engine))) for event in engine.generate(request)]
    layers = len(engine.store.layers)
    assert each(engine) > 0
    assert seen[0] == (False, 0)
    assert all(count == layers * each(engine) for decoded, count in seen if decoded)
    assert engine.store.stats()["hot_experts_pinned"] == layers * each(engine)
    for layer, view in engine.store.layers.items():
        assert sum(key[0] == layer for key in kept(engine)) == each(engine), view
    engine.store.check()


def test_pins_change_no_token(open_engine, monkeypatch) -> None:
    expected = answer(open_engine(12), tokens=12)
    monkeypatch.setenv("LME_DECODE_RESIDENCY", "pin")
    assert answer(open_engine(12), tokens=12) == expected


def test_pinned_experts_leave_only_when_nothing_else_can(pinning) -> None:
    engine = pinning(18)
    answer(engine, tokens=20)
    pool = next(iter(engine.store.layers.values())).pool
    order = pool.policy.candidates(pool.slots, ())
    inside = [key for key in order if key in kept(engine)]
    assert inside
    assert order[-len(inside) :] == inside


def test_pins_are_chosen_anew_within_long_answers_and_after_each(pinning, monkeypatch) -> None:
    monkeypatch.setattr(hot_pins, "RENEWAL_TOKENS", 5)
    engine, renewals = pinning(18), []
    engine.end_tokens = frozenset()
    keep = engine.store.keep_hot
    monkeypatch.setattr(engine.store, "keep_hot", lambda keys: (renewals.append(1), keep(keys)))
    answer(engine, tokens=14)
    # After the prompt, after five and ten decoded tokens, and at the end.
    assert len(renewals) == 4
    with pytest.raises(GenerationCancelledError):
        answer(engine, tokens=14, cancelled=lambda: True)
    assert len(renewals) == 5


def test_a_bank_that_is_whole_is_not_watched_until_it_shrinks(pinning) -> None:
    engine = pinning(None)
    answer(engine)
    assert not any(view.observed for view in engine.store.layers.values())
    assert kept(engine) == set()
    total = engine.store.budget_bytes
    engine.store.resize(total * 3 // 4)
    answer(engine)
    assert kept(engine)
    engine.store.resize(total)
    answer(engine)
    assert kept(engine) == set()
    assert not any(view.observed for view in engine.store.layers.values())


@pytest.mark.parametrize(
    ("variables", "residency", "hint"),
    [
        ({}, "stacked", "needs --streaming"),
        ({"LME_USE_GATHER_DISPATCH": "0"}, "streaming", "LME_USE_GATHER_DISPATCH=0"),
    ],
)
def test_pins_without_a_bank_are_refused(monkeypatch, stacked, variables, residency, hint) -> None:
    for name, value in ({"LME_DECODE_RESIDENCY": "pin"} | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ResidencyError, match="LME_DECODE_RESIDENCY") as caught:
        load_moe(str(stacked), expert_residency=residency)
    assert hint in str(caught.value)
