"""Passes that find and read their experts by themselves: equal to the fence, and whole after failures."""

import os
import sys

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.switch_layers import SwiGLU

from mach_store.cpu_kernels import open_kernels, stock_kernels
from mach_store.errors import ExpertReadError, SidecarCorruptionError, StoreError
from mach_store.eviction import DEFAULT_POLICY, POLICIES
from mach_store.gather_switch_glu import GatherSwitchGLU
from mach_store.scatter_reader import python_twin
from mach_store.settings import StoreSettings

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79]
KERNELS = open_kernels(StoreSettings())


def logits_of(model, tokens, *, chunk: int = 1, after=lambda: None) -> mx.array:
    cache = make_prompt_cache(model)
    rows = []
    for first in range(0, len(tokens), chunk):
        out = model(mx.array([tokens[first : first + chunk]]), cache=cache)
        mx.eval(out)
        after()
        rows.append(out[0, -1])
    return mx.stack(rows)


@pytest.fixture
def open_pair(checkpoints, open_bank, build):
    """A function (slots, …) → a bank, a model over it whose passes need no host, and one that stops."""

    def make(slots, family="qwen3_moe", quantization="affine", **options):
        directory = checkpoints.engine(family, quantization)
        bank, other = open_bank(directory, slots), open_bank(directory, slots)
        return (
            bank,
            build(directory, bank, kernels=KERNELS, **options),
            build(directory, other, kernels=KERNELS, in_graph=False, **options),
        )

    return make


@pytest.fixture
def layer_of(open_bank):
    """A function (checkpoint, slots, …) → a bank and the in-graph dispatch of its first layer."""

    def make(directory, slots, *, policy=DEFAULT_POLICY, in_graph=True):
        bank = open_bank(directory, slots, policy=policy)
        return bank, GatherSwitchGLU(bank, 0, SwiGLU(), kernels=KERNELS, in_graph=in_graph)

    return make


@pytest.mark.parametrize("quantization", ["affine", "mxfp4", "none"])
@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4", "deepseek_v4"])
def test_the_bits_are_those_of_the_fence(open_pair, family, quantization) -> None:
    wide = family in ("qwen3_5_moe", "deepseek_v4")
    for slots in (9, 31) if wide else (4, 9, 16):
        bank, model, fenced = open_pair(slots, family, quantization)
        assert bank.decodes_ahead
        for chunk in (1, 5):
            got = logits_of(model, PROMPT, chunk=chunk, after=bank.check)
            assert mx.array_equal(got, logits_of(fenced, PROMPT, chunk=chunk)), (slots, chunk)
        assert bank.totals().evictions > 0 or slots > 9


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(data=st.data())
def test_any_mixture_of_passes_keeps_the_bank_right(open_pair, data) -> None:
    slots = data.draw(st.integers(4, 16))
    bank, model, reference = open_pair(slots, transient_min_tokens=12)
    try:
        cache, other = make_prompt_cache(model), make_prompt_cache(reference)
        for _ in range(data.draw(st.integers(1, 12))):
            tokens = mx.array([data.draw(st.lists(st.integers(0, 95), min_size=1, max_size=14))])
            out, expected = model(tokens, cache=cache), reference(tokens, cache=other)
            if data.draw(st.booleans()):
                mx.async_eval(out)
            if data.draw(st.booleans()):
                bank.resize(data.draw(st.integers(0, bank.declared_bytes)))
            assert mx.array_equal(out, expected)
            if data.draw(st.booleans()):
                bank.check()
        bank.check()
        totals = bank.totals()
        assert totals.bytes_read == totals.misses * bank.source.schemas[0].nbytes
    finally:
        bank.close()
        reference.model.layers[0].mlp.switch_mlp._store.close()


def test_a_pass_with_more_experts_than_slots_goes_through_them_in_waves(checkpoints, layer_of) -> None:
    x = mx.random.normal((6, 64), key=mx.random.key(3))
    ids = mx.array([[0, 1], [2, 3], [4, 5], [6, 7], [0, 7], [3, 4]], mx.uint32)
    whole, reference = layer_of(checkpoints.engine(), 16)
    expected = reference(x, ids)
    bank, dispatch = layer_of(checkpoints.engine(), 4)
    for _ in range(3):
        bank.begin_pass(0)
        assert mx.array_equal(dispatch._dispatch._streamed(x, ids), expected)
        bank.check()
    assert bank.totals().misses > 8
    whole.quiesce()
    assert whole.totals().misses == 8


def test_counts_and_uses_are_those_of_the_passes_before_the_last_one_built(checkpoints, layer_of) -> None:
    bank, dispatch = layer_of(checkpoints.engine(), 4)
    x = mx.ones((1, 64))
    for expert in (0, 1, 0):
        mx.eval(dispatch(x, mx.array([[expert, 5]])))
    assert (bank.totals().hits, bank.totals().misses) == (1, 3)
    bank.sync()
    assert (bank.totals().hits, bank.totals().misses) == (1, 3), "a pass built last may be one ahead"
    bank.quiesce()
    assert (bank.totals().hits, bank.totals().misses) == (3, 3)
    assert list(bank.expert_map()[0].uses) == [2, 1, 0, 0, 0, 3, 0, 0]
    assert bank.expert_map()[0].resident == bytes([1, 1, 0, 0, 0, 1, 0, 0])


def test_the_expert_used_longest_ago_leaves(checkpoints, layer_of) -> None:
    bank, dispatch = layer_of(checkpoints.engine(), 4)
    x = mx.ones((1, 64))
    for pair in ([0, 1], [2, 3], [0, 1], [4, 0]):
        mx.eval(dispatch(x, mx.array([pair])))
        bank.quiesce()
    assert sorted(expert for _, expert in bank.layers[0].pool.table) == [0, 1, 3, 4]
    bank.check()


@pytest.mark.parametrize("policy", POLICIES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(data=st.data())
def test_who_leaves_is_who_would_leave_if_the_policy_were_asked_in_every_layer(
    checkpoints, layer_of, policy, data
) -> None:
    """Whatever else the policy hears; `check` compares the whole order to come, too."""
    slots = data.draw(st.integers(4, 12))
    bank, first = layer_of(checkpoints.engine(), slots, policy=policy)
    asked, other = layer_of(checkpoints.engine(), slots, policy=policy, in_graph=False)
    activation = first._block.activation
    streamed = [first, GatherSwitchGLU(bank, 1, activation, kernels=KERNELS)]
    fenced = [other, GatherSwitchGLU(asked, 1, activation, kernels=KERNELS, in_graph=False)]
    experts = st.lists(st.integers(0, 7), min_size=2, max_size=2, unique=True)
    x = mx.ones((1, 64))
    for _ in range(data.draw(st.integers(5, 40))):
        event = data.draw(st.sampled_from(["pass"] * 12 + ["fence", "hear", "keep", "resize", "unpin"]))
        layer = data.draw(st.integers(0, 1))
        if event in ("pass", "fence"):
            ids = mx.array([data.draw(experts)])
            mx.eval(fenced[layer](x, ids))
            if event == "pass":
                bank.begin_pass(0)
                mx.async_eval(streamed[layer](x, ids))
            else:
                fence = GatherSwitchGLU(bank, layer, activation, kernels=KERNELS, in_graph=False)
                mx.eval(fence(x, ids))
        elif event == "hear":
            bank.quiesce()
            counts = data.draw(st.dictionaries(st.integers(0, 7), st.integers(1, 9), min_size=1))
            for store in (bank, asked):
                store.layers[layer].pool.heard(layer, counts)
        elif event == "keep":
            keys = data.draw(st.sets(st.tuples(st.integers(0, 1), st.integers(0, 7)), max_size=4))
            for store in (bank, asked):
                store.quiesce()
                store.keep_hot(keys)
        elif event == "resize":
            budget = data.draw(st.integers(0, bank.declared_bytes))
            assert bank.resize(budget) == asked.resize(budget)
        else:
            for store in (bank, asked):
                store.release()
        if data.draw(st.booleans()):
            bank.check()
            assert bank.layers[0].pool.table.keys() == asked.layers[0].pool.table.keys()
    bank.check()
    assert bank.layers[0].pool.table.keys() == asked.layers[0].pool.table.keys()
    assert bank.totals().evictions == asked.totals().evictions
    bank.close()
    asked.close()


def test_a_history_so_long_that_counts_are_scaled_down_is_counted_alike(checkpoints, layer_of) -> None:
    bank, dispatch = layer_of(checkpoints.engine(), 4)
    x, chance = mx.ones((1, 64)), np.random.default_rng(3)
    for number in range(1000):
        mx.async_eval(dispatch(x, mx.array([chance.choice(8, 2, replace=False).tolist()])))
        if number % 50 == 0:
            bank.check()
    bank.check()
    # Each use is worth 2^(1/4) times the one before: it was scaled down once.
    assert max(bank.layers[0].pool.policy.standing(0, 8).worths) < 2.0**110


def test_routes_are_seen_without_a_fence(open_pair) -> None:
    bank, model, fenced = open_pair(5)
    other = fenced.model.layers[0].mlp.switch_mlp._store
    for store in (bank, other):
        store.observe_routes(True)
    logits_of(model, PROMPT)
    logits_of(fenced, PROMPT)
    bank.quiesce()
    seen, expected = bank.drain_routes(), other.drain_routes()
    assert [(p.layer, p.ids.tolist()) for p in seen] == [(p.layer, p.ids.tolist()) for p in expected]
    assert seen[0].ids.dtype == np.uint16
    bank.observe_routes(False)
    logits_of(model, PROMPT[:2])
    bank.quiesce()
    assert bank.drain_routes() == []


def test_an_expert_that_does_not_exist_fails_the_pass_and_the_next_one_works(checkpoints, layer_of) -> None:
    bank, dispatch = layer_of(checkpoints.engine(), 5)
    x = mx.ones((1, 64))
    good = mx.array([[0, 1]])
    before = dispatch(x, good)
    mx.eval(before)
    for wrong in (8, -1, 1 << 20):
        assert mx.isnan(dispatch(x, mx.array([[0, wrong]]))).all()
        with pytest.raises(StoreError, match="layer 0: the router chose an expert outside 0…7"):
            bank.quiesce()
        bank.check()
        assert mx.array_equal(dispatch(x, good), before)


def damage(directory, layer, expert) -> None:
    path = directory / "expert_sidecar" / f"layer_{layer:02d}.bin"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 8 * expert] ^= 1
    path.write_bytes(raw)


def test_a_corrupt_record_fails_the_pass_and_every_one_built_on_it(
    checkpoints, layer_of, copy_checkpoint
) -> None:
    directory = copy_checkpoint(checkpoints.engine())
    damage(directory, 0, 3)
    bank, dispatch = layer_of(directory, 5)
    x = mx.random.normal((1, 64), key=mx.random.key(1))
    good = mx.array([[1, 2]])
    before = dispatch(x, good)
    mx.eval(before)
    for ids in ([3, 0], [4, 3], [3, 1]):
        bad = dispatch(x, mx.array([ids]))
        later = dispatch(bad[:, 0], good)
        assert mx.isnan(later).all()
        with pytest.raises(SidecarCorruptionError, match="layer 0, expert 3: the bytes") as caught:
            bank.quiesce()
        assert (caught.value.layer, caught.value.expert) == (0, 3)
        assert caught.value.path == str(directory / "expert_sidecar" / "layer_00.bin")
        assert "CRC-32" in str(caught.value.__cause__)
        bank.check()
        assert (0, 3) not in bank.layers[0].pool.table
        assert mx.array_equal(dispatch(x, good), before)
    bank.check()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_read_that_failed_was_no_use(checkpoints, layer_of, copy_checkpoint, policy) -> None:
    directory = copy_checkpoint(checkpoints.engine())
    damage(directory, 0, 3)
    bank, dispatch = layer_of(directory, 5, policy=policy)
    x = mx.ones((1, 64))
    for _ in range(6):
        mx.eval(dispatch(x, mx.array([[3, 0]])))
        with pytest.raises(SidecarCorruptionError):
            bank.quiesce()
        bank.check()
    damage(directory, 0, 3)  # whole again
    for ids in ([3, 1], [1, 2], [1, 2], [4, 0]):
        mx.eval(dispatch(x, mx.array([ids])))
        bank.check()


def test_slots_whose_reads_failed_at_a_fence_are_taken_by_passes(
    checkpoints, layer_of, copy_checkpoint
) -> None:
    directory = copy_checkpoint(checkpoints.engine())
    damage(directory, 1, 3)
    bank, dispatch = layer_of(directory, 4)
    fenced = GatherSwitchGLU(bank, 1, SwiGLU(), kernels=KERNELS, in_graph=False)
    x = mx.ones((1, 64))
    with pytest.raises(SidecarCorruptionError):
        fenced(x, mx.array([[3, 4]]))
    for ids in ([0, 1], [2, 3]):
        mx.eval(dispatch(x, mx.array([ids])))
    bank.check()
    assert bank.layers[0].pool.free == 0


def test_a_file_that_becomes_short_fails_the_pass(checkpoints, layer_of, copy_checkpoint) -> None:
    directory = copy_checkpoint(checkpoints.engine())
    bank, dispatch = layer_of(directory, 5)
    x = mx.ones((1, 64))
    mx.eval(dispatch(x, mx.array([[0, 1]])))
    path = directory / "expert_sidecar" / "layer_00.bin"
    os.truncate(path, path.stat().st_size // 2)
    assert mx.isnan(dispatch(x, mx.array([[0, 7]]))).all()
    with pytest.raises(
        ExpertReadError, match="layer 0, expert 7: cannot be read: .*the file ended"
    ) as caught:
        bank.sync()
    assert caught.value.path == str(path)
    bank.check()
    mx.eval(dispatch(x, mx.array([[0, 1]])))


def test_a_failure_that_nobody_evaluated_is_told_once_and_leaves_nothing(
    checkpoints, layer_of, copy_checkpoint
) -> None:
    directory = copy_checkpoint(checkpoints.engine())
    damage(directory, 0, 3)
    bank, dispatch = layer_of(directory, 5)
    x = mx.ones((1, 64))
    mx.async_eval(dispatch(x, mx.array([[3, 4]])))
    bank.abandon()
    bank.check()
    bank.quiesce()
    y = dispatch(x, mx.array([[4, 5]]))
    mx.eval(y, mx.ones(3) + 1)
    assert mx.isfinite(y).all()


def test_what_is_queued_when_its_request_ends_is_not_computed(checkpoints, layer_of) -> None:
    bank, dispatch = layer_of(checkpoints.engine(), 5)
    x = mx.ones((1, 64))
    ids = mx.array([[1, 2]])
    expected = dispatch(x, ids)
    mx.eval(expected)
    for _ in range(20):
        chain = x
        for _ in range(30):
            chain = dispatch(chain, ids)[:, 0]
        mx.async_eval(chain)
        bank.abandon()
        bank.check()
        assert mx.array_equal(dispatch(x, ids), expected)


def test_a_graph_that_is_held_keeps_its_slots_while_passes_run(checkpoints, layer_of) -> None:
    bank, dispatch = layer_of(checkpoints.engine(), 4)
    fenced = GatherSwitchGLU(bank, 1, dispatch._block.activation, kernels=KERNELS, in_graph=False)
    x = mx.random.normal((1, 64), key=mx.random.key(2))
    for first in (0, 2, 4, 6):
        held = fenced(x, mx.array([[first, first + 1]]))
        slots = {key: bank.layers[1].pool.table[key] for key in bank.layers[1].pool.pinned}
        for other in (0, 2, 4):
            streamed = dispatch._dispatch._streamed(x, mx.array([[other, other + 1]]))
            mx.eval(streamed)
        bank.quiesce()
        assert {key: bank.layers[1].pool.table[key] for key in slots} == slots
        mx.eval(held)
        bank.release()
        bank.check()


def test_why_there_is_no_dispatch_in_the_graph_is_said(checkpoints, open_bank, monkeypatch) -> None:
    def told(bank, **options) -> str:
        stats = GatherSwitchGLU(bank, 0, SwiGLU(), **options).stats()
        assert (
            bank.stats()["layers"]["0"].items()
            >= {name: value for name, value in stats.items() if name.startswith("dispatch")}.items()
        )
        return stats["dispatch"] + ": " + stats.get("dispatch_reason", "")

    directory = checkpoints.engine()
    assert told(open_bank(directory, 5), kernels=KERNELS) == "in-graph: "
    off = told(open_bank(directory, 5), kernels=KERNELS, in_graph=False)
    assert off == "gather: switched off by LME_IN_GRAPH_DISPATCH=0"
    stock = told(open_bank(directory, 5), kernels=stock_kernels("for a test"))
    assert stock == "gather: stock operations compute: for a test"
    twin = told(open_bank(directory, 5, reader=python_twin()), kernels=KERNELS)
    assert twin == "gather: the Python reader reads: asked for"
    monkeypatch.setitem(sys.modules, "lme_expert_stream", None)
    assert "lme_expert_stream" in told(open_bank(directory, 5), kernels=KERNELS)


def test_prewarming_a_whole_bank_counts_nothing_and_passes_read_nothing(open_pair) -> None:
    bank, model, _ = open_pair(16)
    bank.prewarm()
    read = bank.totals().bytes_read
    logits_of(model, PROMPT, chunk=8)
    bank.quiesce()
    totals = bank.totals()
    assert (totals.bytes_read, totals.misses, totals.evictions) == (read, 0, 0)
    uses = [sum(layer.uses) for layer in bank.expert_map().values()]
    assert sum(uses) == totals.hits > 0
    bank.check()


def test_a_token_finds_slots_though_a_prompt_left_all_of_them_pinned(open_pair) -> None:
    bank, model, reference = open_pair(4)
    bank.layers[1].acquire([3, 4, 5, 6])  # as a prompt's last wave, whose result nobody holds
    token = mx.array([[29]])
    assert mx.array_equal(model(token), reference(token))
    bank.check()
