import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache

from mach_store.deepseek_v4 import Model, ModelArgs
from mach_store.deepseek_v4.cache import ROW_STEP, CompressedCache, RowBuffer
from mach_store.errors import StoreError


@pytest.fixture
def model(config) -> Model:
    mx.random.seed(3)
    made = Model(ModelArgs.from_dict(config("deepseek_v4", "none")))
    mx.eval(made.parameters())
    return made


def run(model, cache, count, first=0) -> mx.array:
    logits = model(mx.array([[(7 * i) % 96 for i in range(first, first + count)]]), cache=cache)
    mx.eval(logits, [layer.state for layer in cache])
    return logits


def test_a_cache_goes_on_from_its_state(model) -> None:
    for count in (0, 1, 3, 4, 21, 130):
        cache = model.make_cache()
        if count:
            run(model, cache, count)
        again = [type(layer).from_state(layer.state) for layer in cache]
        assert [layer.offset for layer in again] == [count] * 4
        assert mx.array_equal(run(model, cache, 9, count), run(model, again, 9, count))


def test_a_state_that_was_taken_is_not_changed_by_what_comes_after(model) -> None:
    cache = model.make_cache()
    run(model, cache, 22)
    before = [layer.state for layer in cache]
    first = run(model, cache, 9, 22)
    second = run(model, [CompressedCache.from_state(state) for state in before], 9, 22)
    assert mx.array_equal(first, second)


def test_the_window_and_the_open_groups_are_bounded_and_entries_grow_with_the_ratio(model) -> None:
    cache = model.make_cache()
    run(model, cache, 600)
    for layer, plan in zip(cache, model.args.layers, strict=True):
        assert layer.window.shape == (15, 32)
        assert len(layer.groups) == bool(plan.ratio) + plan.indexed
        for group, dim in zip(layer.groups, (32, 16), strict=False):
            assert group.entries.count == 600 // plan.ratio
            assert group.entries.array.shape == (-(-(600 // plan.ratio) // ROW_STEP) * ROW_STEP, dim)
            waiting = 600 % plan.ratio
            assert (group.open_values is None) == (waiting == 0)
            if waiting:
                assert group.open_values.shape[0] == group.open_gates.shape[0] == waiting
            assert (group.last_values is None) != plan.indexed
    assert cache[0].nbytes == 15 * 32 * 4


def test_a_chunk_is_not_kept_alive_by_what_is_left_of_it(model) -> None:
    run(model, model.make_cache(), 900)  # the angles of the last positions stay with the model
    cache = model.make_cache()
    before = mx.get_active_memory()
    run(model, cache, 900)
    # Logits are gone; the cache's arrays are all that stays, each in memory of its own.
    assert mx.get_active_memory() - before < 1.2 * sum(layer.nbytes for layer in cache) + 8192


def test_decoding_leaves_no_graph_behind(model) -> None:
    """Open groups and unused indexer keys are evaluated with the token, though it does not need them."""
    cache = model.make_cache()
    run(model, cache, 3)
    for step in range(43):
        mx.eval(model(mx.array([[step]]), cache=cache))  # the logits alone
    before = mx.get_active_memory()
    mx.eval([layer.state for layer in cache])
    assert mx.get_active_memory() == before, "there was something left to compute"


def test_it_is_of_mlx_lms_kind_and_cannot_be_trimmed(model) -> None:
    cache = make_prompt_cache(model)
    assert [type(layer) for layer in cache] == [CompressedCache] * 4
    assert all(layer.empty() and layer.size() == 0 and layer.nbytes == 0 for layer in cache)
    run(model, cache, 5)
    assert not cache[0].empty()
    assert cache[0].size() == 5
    assert not can_trim_prompt_cache(cache)
    assert cache[1].trim(0) == 0
    with pytest.raises(StoreError, match="cannot be trimmed"):
        cache[1].trim(1)


def test_rows_grow_in_steps_and_keep_their_content() -> None:
    buffer, expected = RowBuffer(), np.zeros((0, 3), np.float32)
    random = np.random.default_rng(1)
    for count in (1, 62, 1, 1, 200, 64, 5):
        rows = random.standard_normal((count, 3)).astype(np.float32)
        buffer.append(mx.array(rows))
        expected = np.concatenate([expected, rows])
        assert np.array_equal(np.array(buffer.rows()), expected)
        assert buffer.array.shape[0] % ROW_STEP == 0
        assert buffer.array.shape[0] - buffer.count < ROW_STEP
