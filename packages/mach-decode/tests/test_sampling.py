import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mach_decode.errors import SamplingError
from mach_decode.sampling import SamplingParams, choose

VOCABULARY = 16
LOGITS = np.random.default_rng(1).normal(0, 2, VOCABULARY).astype(np.float32)


def draw(logits: np.ndarray, params: SamplingParams, positions: range, seen=(), **more) -> list[int]:
    array = mx.array(logits)
    tokens = mx.stack([choose(array, params, position, seen, **more) for position in positions])
    return tokens.tolist()


def reference(logits: np.ndarray, params: SamplingParams, seen=()) -> np.ndarray:
    """The probabilities by the definitions, in float64: bias, penalty, temperature, top-k, top-p, min-p."""
    x = logits.astype(np.float64)
    for token, bias in params.logit_bias:
        x[token] += bias
    for token in set(seen):
        x[token] = (
            x[token] / params.repetition_penalty if x[token] > 0 else x[token] * params.repetition_penalty
        )
    x = x / params.temperature
    order = np.argsort(-x, kind="stable")
    keep = np.ones(len(x), bool)
    if 0 < params.top_k < len(x):
        keep[order[params.top_k :]] = False
    p = np.where(keep, np.exp(x - x.max()), 0.0)
    p /= p.sum()
    if params.top_p < 1.0:
        total = 0.0
        for token in order:
            if total >= params.top_p:
                keep[token] = False
            total += p[token]
        p = np.where(keep, p, 0.0)
        p /= p.sum()
    if params.min_p > 0.0:
        p = np.where(p < params.min_p * p.max(), 0.0, p)
        p /= p.sum()
    return p


CASES = [
    dict(),
    dict(temperature=0.5),
    dict(temperature=2.0),
    dict(top_k=1),
    dict(top_k=5),
    dict(top_k=400),
    dict(top_p=0.6),
    dict(top_p=1e-6),
    dict(min_p=0.2),
    dict(min_p=1.0),
    dict(top_k=6, top_p=0.8, min_p=0.1, temperature=1.3),
    dict(repetition_penalty=1.8),
    dict(repetition_penalty=0.5, top_p=0.9),
    dict(logit_bias=((3, 4.0), (5, -100.0)), temperature=0.7),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tokens_come_as_often_as_the_reference_says(case) -> None:
    # Each token's count over many positions is binomial: chi-square over all of them, at a fixed seed.
    params = SamplingParams(**{"temperature": 1.0, "seed": 42} | case)
    seen = [1, 2, 2, 7] if "repetition_penalty" in case else ()
    draws = 1200
    counts = np.bincount(draw(LOGITS, params, range(draws), seen), minlength=VOCABULARY)
    expected = reference(LOGITS, params, seen) * draws
    assert not counts[expected == 0].any(), "a token that was cut off is never drawn"
    likely = expected >= 5
    chi_square = float(((counts - expected)[likely] ** 2 / expected[likely]).sum())
    # 4 standard deviations above the mean of a chi-square distribution.
    freedom = max(1, int(likely.sum()) - 1)
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1 << 70),
    temperature=st.floats(0.05, 2),
    top_k=st.integers(0, 20),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    penalty=st.floats(0.2, 5),
    seen=st.lists(st.integers(0, VOCABULARY - 1), max_size=6),
)
def test_what_is_cut_off_is_never_drawn(seed, temperature, top_k, top_p, min_p, penalty, seen) -> None:
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty, seed=seed
    )
    logits = np.random.default_rng(seed).normal(0, 2, VOCABULARY).astype(np.float32)
    # A hair's breadth more lenient, because float32 sums the nucleus in another order.
    lenient = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=min(1.0, top_p * 1.00001),
        min_p=min_p * 0.9999,
        repetition_penalty=penalty,
    )
    allowed = reference(logits, lenient, seen) > 0
    assert allowed[draw(logits, params, range(8), seen)].all()


def test_a_position_draws_the_same_whatever_was_drawn_before() -> None:
    params = SamplingParams(temperature=1.0, seed=9)
    forwards = draw(LOGITS, params, range(40))
    backwards = draw(LOGITS, params, range(39, -1, -1))
    assert forwards == backwards[::-1]
    assert draw(LOGITS, params, range(30, 31)) == forwards[30:31]
    assert len(set(forwards)) > 3


def test_the_global_random_state_is_neither_used_nor_touched() -> None:
    params = SamplingParams(temperature=1.0, seed=9)
    mx.random.seed(1)
    before = mx.random.normal((4,))
    mx.random.seed(1)
    first = draw(LOGITS, params, range(20))
    assert mx.array_equal(mx.random.normal((4,)), before)
    mx.random.seed(2)
    assert draw(LOGITS, params, range(20)) == first


def test_other_seeds_draw_other_tokens_and_neighbouring_seeds_are_independent() -> None:
    runs = {seed: draw(LOGITS, SamplingParams(temperature=1.5, seed=seed), range(64)) for seed in range(4)}
    for seed in range(3):
        agree = sum(a == b for a, b in zip(runs[seed], runs[seed + 1], strict=True))
        shifted = sum(a == b for a, b in zip(runs[seed][1:], runs[seed + 1], strict=False))
        assert max(agree, shifted) < 32


@pytest.mark.parametrize("seed", [-1, 1 << 64, (1 << 64) - 1, -(1 << 80)])
def test_any_integer_is_a_seed(seed) -> None:
    tokens = draw(LOGITS, SamplingParams(temperature=1.0, seed=seed), range(4))
    assert all(0 <= token < VOCABULARY for token in tokens)
    masked = SamplingParams(temperature=1.0, seed=seed % (1 << 64))
    assert tokens == draw(LOGITS, masked, range(4))


@pytest.mark.parametrize("temperature", [0.0, 1e-3, 1e-9, 1e-37, 1e-40, 1e-45, 1e-300])
def test_the_smaller_the_temperature_the_nearer_to_the_greatest(temperature) -> None:
    params = SamplingParams(temperature=temperature, seed=1)
    for sign in (1, -1):
        assert set(draw(sign * LOGITS, params, range(20))) == {int(np.argmax(sign * LOGITS))}


def test_greedy_ignores_everything_but_the_penalty() -> None:
    params = SamplingParams(temperature=0.0, top_k=3, top_p=0.1, min_p=0.9, seed=4)
    best = int(LOGITS.argmax())
    assert draw(LOGITS, params, range(3)) == [best] * 3
    punished = SamplingParams(repetition_penalty=10.0)
    second = int(np.argsort(-LOGITS)[1])
    assert draw(LOGITS, punished, range(1), [best, best]) == [second]


def test_the_penalty_pushes_negative_logits_down_too() -> None:
    logits = np.full(4, -1.0, np.float32)
    params = SamplingParams(repetition_penalty=2.0)
    assert draw(logits, params, range(1), [0, 1, 2]) == [3]


def test_penalties_of_the_answer_count_its_tokens() -> None:
    logits = np.array([5.0, 4.0, 3.0, 2.0], np.float32)
    answered = {0: 3, 1: 1}
    for frequency, presence, best in (
        (0.0, 0.0, 0),
        (0.6, 0.0, 1),
        (1.0, 0.0, 1),
        (2.0, 0.0, 2),
        (0, 2.0, 0),
    ):
        params = SamplingParams(frequency_penalty=frequency, presence_penalty=presence)
        assert draw(logits, params, range(1), (), answered=answered) == [best], (frequency, presence)
    both = SamplingParams(frequency_penalty=0.5, presence_penalty=1.0)
    assert draw(logits, both, range(1), (), answered=answered) == [2]
    encouraged = SamplingParams(frequency_penalty=-2.0)
    assert draw(logits, encouraged, range(1), (), answered={3: 2}) == [3]
    assert draw(logits, both, range(1), (), answered={}) == [0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_allowed_tokens_are_drawn(temperature) -> None:
    params = SamplingParams(
        temperature=temperature, seed=3, top_p=0.9, repetition_penalty=1.5, logit_bias=((0, 100.0),)
    )
    mask = np.array([1 << 4 | 1 << 9], np.int32)
    assert set(draw(LOGITS, params, range(40), [4], mask=mask)) <= {4, 9}


def test_the_callers_logits_stay_as_they_are() -> None:
    array = mx.array(LOGITS)
    params = SamplingParams(
        repetition_penalty=3.0, temperature=1.0, presence_penalty=1.0, logit_bias=((1, 3.0),)
    )
    mx.eval(choose(array, params, 0, {1, 2}, answered={1: 2}))
    assert np.array_equal(np.array(array), LOGITS)


def test_half_precision_logits_are_drawn_in_full_precision() -> None:
    params = SamplingParams(temperature=1.0, seed=3, top_p=0.9)
    half = mx.array(LOGITS).astype(mx.bfloat16)
    wide = half.astype(mx.float32)
    for position in range(10):
        assert choose(half, params, position, ()).item() == choose(wide, params, position, ()).item()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("top_k", -1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("min_p", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", math.nan),
        ("repetition_penalty", 11.0),
        ("frequency_penalty", 2.1),
        ("presence_penalty", -2.1),
        ("presence_penalty", math.nan),
        ("logit_bias", ((1, 101.0),)),
        ("logit_bias", ((1, math.nan),)),
        ("logit_bias", ((-1, 1.0),)),
        ("logit_bias", ((1, 1.0), (1, 2.0))),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value) -> None:
    with pytest.raises(SamplingError, match=field) as caught:
        SamplingParams(**{field: value})
    assert caught.value.parameter == field
