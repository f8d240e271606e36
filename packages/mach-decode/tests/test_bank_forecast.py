import pytest

from mach_decode import bank_forecast
from mach_decode.bank_forecast import (
    BURST_STRETCHES,
    SETTLE_TOKENS,
    STRETCH_TOKENS,
    BankForecast,
    DecodeTimes,
)
from mach_decode.errors import GenerationCancelledError
from mach_decode.request import GenerationRequest
from mach_decode.sampling import SamplingParams
from mach_store.counters import LayerCounters

BURST = STRETCH_TOKENS * BURST_STRETCHES


class Clock:
    """Each look at it takes a while."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def answer(engine, tokens, cancelled=lambda: False, first=100) -> list[int]:
    """Sampled: a random model's greedy answers go round in circles."""
    prompt, sampling = tuple(range(first, first + 40)), SamplingParams(temperature=1.0, seed=1)
    request = GenerationRequest(prompt=prompt, max_tokens=tokens, sampling=sampling)
    return [event.token for event in engine.generate(request, cancelled) if event.token is not None]


def with_clock(engine, step: float) -> BankForecast:
    engine.forecast = BankForecast(engine.store, engine.route_observers, dispatch="gather", clock=Clock(step))
    return engine.forecast


def followed(engine) -> bool:
    return any(layer.observed for layer in engine.store.layers.values())


@pytest.fixture
def endless(open_engine):
    """A bank of half of the experts, and answers that end only where they must."""
    engine = open_engine(12)
    engine.end_tokens = frozenset()
    return engine


def test_a_speed_is_computing_and_waiting_added_up() -> None:
    times = DecodeTimes()
    times.add(10, 2.0, LayerCounters(hits=60, misses=40, wait_seconds=0.5), 0.1)
    told = times.as_dict()
    assert told["references_per_token"] == 10
    assert told["compute_seconds_per_token"] == pytest.approx(0.15)
    assert told["seconds_per_miss"] == pytest.approx(0.0125)
    assert told["measured_hit_rate"] == pytest.approx(0.6)
    assert told["measured_tokens_per_second"] == pytest.approx(5)
    assert told["cost"] == pytest.approx(0.05)
    assert times.tokens_per_second(0.6) == pytest.approx(5)
    assert times.tokens_per_second(1.0) == pytest.approx(1 / 0.15)
    assert times.tokens_per_second(0.0) == pytest.approx(1 / (0.15 + 10 * 0.0125))
    assert times.tokens_per_second(None) is None


def test_what_a_miss_costs_is_not_known_before_one_was_seen() -> None:
    times = DecodeTimes()
    assert times.tokens_per_second(0.5) is None
    assert set(times.as_dict().values()) == {None}
    times.add(10, 2.0, LayerCounters(hits=100), 0.0)
    assert times.as_dict()["seconds_per_miss"] is None
    assert times.tokens_per_second(0.5) is None
    assert times.tokens_per_second(1.0) == pytest.approx(5)


def test_late_tokens_count_more_than_early_ones() -> None:
    times = DecodeTimes()
    times.add(2048, 2048.0, LayerCounters(misses=1), 0.0)
    for _ in range(20):
        times.add(2048, 1024.0, LayerCounters(hits=1), 0.0)
    assert times.as_dict()["measured_tokens_per_second"] == pytest.approx(2, abs=0.01)
    assert times.as_dict()["measured_hit_rate"] > 0.99


def test_decoding_makes_a_forecast_of_every_size(endless) -> None:
    assert endless.forecast.as_dict() == {
        "scope": "decode",
        "points": None,
        "reason": "no token has been decoded yet",
    }
    answer(endless, 100)
    told = endless.forecast.as_dict()
    assert told["reason"] is None
    assert [point["relative"] for point in told["points"]] == [0.5, 1.0, 1.5, 2.0]
    assert [point["bank_slots"] for point in told["points"]] == [6, 12, 18, 24]
    rates = [point["hit_rate"] for point in told["points"]]
    assert rates == sorted(rates) and rates[-1] == 1.0 and rates[0] < 0.9
    speeds = [point["tokens_per_second"] for point in told["points"]]
    assert speeds == sorted(speeds)
    assert (told["keys"], told["sampled_keys"], told["sample_rate"]) == (24, 24, 1.0)
    assert 0 < told["tokens"] <= 100 and told["references"] == 6 * told["tokens"]
    assert told["references_per_token"] == pytest.approx(6)
    assert told["points"][1]["bank_bytes"] == endless.store.nbytes


def test_the_present_size_is_forecast_as_it_was_measured(endless, monkeypatch) -> None:
    monkeypatch.setattr(bank_forecast, "MOST_COST", 1e9)
    for first in (100, 300, 500):
        answer(endless, 150, first=first)
    told = endless.forecast.as_dict()
    assert told["tokens"] == 449, "all but the very first, whose pass is over before anything is known"
    present = told["points"][1]
    assert present["hit_rate"] == pytest.approx(told["measured_hit_rate"], abs=0.02)
    assert present["tokens_per_second"] == pytest.approx(told["measured_tokens_per_second"], rel=0.05)


def test_routes_are_followed_in_bursts_while_that_is_dear(endless) -> None:
    forecast = with_clock(endless, 1.0)
    answer(endless, BURST)
    assert followed(endless), "a burst is never cut short"
    answer(endless, STRETCH_TOKENS)
    assert not followed(endless)
    tokens = forecast.as_dict()["tokens"]
    answer(endless, 2 * STRETCH_TOKENS)
    assert forecast.as_dict()["tokens"] == tokens
    forecast._clock.step = 1e6  # as if the pause had been long
    answer(endless, 2 * STRETCH_TOKENS)
    assert followed(endless)
    # It began after an answer's first token and one stretch, and its first tokens only bring it up to date.
    assert forecast.as_dict()["tokens"] == tokens + STRETCH_TOKENS - 1 - SETTLE_TOKENS


def test_routes_are_followed_all_the_time_while_that_costs_nothing(endless) -> None:
    forecast = with_clock(endless, 0.0)
    answer(endless, 3 * BURST)
    assert followed(endless)
    assert forecast.as_dict()["tokens"] == 3 * BURST - 1


def test_the_time_of_following_is_not_taken_for_computing(endless, monkeypatch) -> None:
    monkeypatch.setattr(bank_forecast, "MOST_COST", 1e9)
    forecast = with_clock(endless, 1.0)
    answer(endless, 1 + STRETCH_TOKENS)
    times = forecast._times
    # A look at the clock before and after each token's routes, and one at each end of the stretch.
    assert times.followed == STRETCH_TOKENS
    assert times.seconds == STRETCH_TOKENS + 1


def test_an_answer_that_breaks_off_leaves_its_last_tokens_out(endless) -> None:
    calls = iter([False] * 20 + [True] * 100)
    with pytest.raises(GenerationCancelledError):
        answer(endless, 100, cancelled=lambda: next(calls))
    assert endless.forecast._times.tokens == 0
    answer(endless, 6)
    assert endless.forecast._times.tokens == 5


def test_a_bank_that_is_resized_gets_a_curve_of_its_own(open_engine) -> None:
    engine = open_engine()
    engine.end_tokens = frozenset()
    slot, everything = engine.store.nbytes // 24, engine.store.budget_bytes
    assert engine.forecast.as_dict() == {"scope": "decode", "points": None, "reason": bank_forecast.WHOLE}
    for slots in (12, 9):
        engine.store.resize(slots * slot)
        answer(engine, 20)
        told = engine.forecast.as_dict()
        assert told["points"][1]["bank_slots"] == slots
        assert told["tokens"] < 20
        assert followed(engine)
    engine.store.resize(everything)
    answer(engine, 5)
    assert not followed(engine)
    assert engine.forecast.as_dict() == {"scope": "decode", "points": None, "reason": bank_forecast.WHOLE}


def test_with_every_expert_in_memory_there_is_none_and_the_host_sees_no_routes(open_engine, stacked) -> None:
    whole, resident = open_engine(), open_engine(directory=stacked, expert_residency="stacked")
    own = open_engine(directory=stacked, expert_residency="unswapped")
    for engine in (whole, resident, own):
        answer(engine, 8)
        assert engine.store.host_free
        told = engine.forecast.as_dict()
        assert told["points"] is None and set(told) == {"scope", "points", "reason"}
    assert "nothing is missed" in whole.forecast.as_dict()["reason"]
    assert "every expert is in memory" in resident.forecast.as_dict()["reason"]
    assert "mlx-lm" in own.forecast.as_dict()["reason"]


def test_the_reference_dispatch_has_no_bank_to_forecast(open_engine, monkeypatch) -> None:
    monkeypatch.setenv("LME_USE_GATHER_DISPATCH", "0")
    engine = open_engine(12)
    answer(engine, 4)
    assert "LME_USE_GATHER_DISPATCH=0" in engine.forecast.as_dict()["reason"]


def test_forecasting_changes_no_token(open_engine) -> None:
    with_it, without = open_engine(12), open_engine(12)
    without.forecast = BankForecast(without.store, without.route_observers, dispatch="disk")
    assert answer(with_it, 60) == answer(without, 60)
