import mlx.core as mx
import pytest

from mach_decode.errors import KvBudgetError, PromptTooLongError
from mach_decode.kv_budget import KvBudget
from mach_decode.request import GenerationRequest

BUDGET = KvBudget(context_length=1000, tokens=512, nbytes=51_200, size=lambda tokens: tokens * 100)


def test_an_answer_has_what_the_budget_leaves() -> None:
    assert BUDGET.room(500, None) == 12
    assert BUDGET.room(500, 7) == 7
    assert BUDGET.room(500, 12) == 12


@pytest.mark.parametrize(("prompt", "asked", "needed"), [(512, None, 513), (500, 13, 513), (600, 900, 1000)])
def test_what_does_not_fit_is_refused_with_the_numbers(prompt, asked, needed) -> None:
    with pytest.raises(KvBudgetError) as caught:
        BUDGET.room(prompt, asked)
    error = caught.value
    assert (error.prompt_tokens, error.max_tokens, error.tokens) == (prompt, asked, 512)
    assert (error.needed_bytes, error.budget_bytes) == (needed * 100, 51_200)
    for number in (f"{prompt} tokens", "512 tokens", "5.12e-05 GB", "--kv-cache-gb"):
        assert number in str(error)


def test_a_budget_for_the_whole_context_bounds_nothing_but_the_context() -> None:
    whole = KvBudget(context_length=1000, tokens=1000, nbytes=100_000, size=lambda tokens: tokens * 100)
    assert whole.room(400, 5000) == 600, "max_tokens beyond the context is cut to it, as ever"
    for budget in (whole, BUDGET):
        with pytest.raises(PromptTooLongError):
            budget.room(1000, None)


def test_an_engine_keeps_to_its_budget(open_engine) -> None:
    size = open_engine(slots=20).kv_budget.size
    assert size is not None
    engine = open_engine(slots=20, kv_cache_gb=(size(256) + 0.5) / 1e9)
    budget = engine.kv_budget
    assert (budget.tokens, budget.nbytes) == (256, size(256))
    assert engine.context_length > 256
    prompt = tuple(range(20, 20 + 200))
    for refused in (
        GenerationRequest(prompt=prompt, max_tokens=57),
        GenerationRequest(prompt=prompt + prompt, max_tokens=None),
    ):
        with pytest.raises(KvBudgetError):
            next(engine.generate(refused))
    events = list(engine.generate(GenerationRequest(prompt=prompt + prompt[:50], max_tokens=None)))
    assert sum(event.token is not None for event in events) <= 6
    assert events[-1].finish_reason in ("length", "stop")


def test_keys_and_values_are_as_large_as_the_budget_says(open_engine) -> None:
    engine = open_engine(slots=20)
    size = engine.kv_budget.size
    assert size is not None
    caches = engine.kv_caches.make()
    engine.model(mx.array([list(range(20, 120))]), cache=caches)
    engine.kv_caches.evaluate(caches)
    assert sum(cache.nbytes for cache in caches) == size(100)
