"""Experts that are read before they are needed: nothing but time depends on them."""

import os
import random
import time

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.switch_layers import SwiGLU

from mach.io.inspection import inspect_checkpoint
from mach_store import streamed_pool
from mach_store.cpu_kernels import open_kernels
from mach_store.errors import ExpertReadError, SidecarCorruptionError
from mach_store.gather_switch_glu import GatherSwitchGLU
from mach_store.next_router import foretell_routes
from mach_store.settings import StoreSettings

KERNELS = open_kernels(StoreSettings())
EXPERTS = 8
SLOTS = 12
"""Of the 16 experts in both layers; two of them are the reserve."""


@pytest.fixture(autouse=True)
def reserves_in_small_banks(monkeypatch) -> None:
    monkeypatch.setattr(streamed_pool, "RESERVE_PART", 2)


class TwoLayers:
    """The layers of one bank, and what the first one is told of the second one's routes."""

    def __init__(self, bank) -> None:
        self.bank = bank
        self.first, self.second = (
            GatherSwitchGLU(bank, layer, SwiGLU(), kernels=KERNELS) for layer in (0, 1)
        )
        self.foretold: list[int] | None = None
        self.first.foretell(self._scores)

    def _scores(self, x: mx.array) -> mx.array:
        scores = np.zeros((*x.shape[:-1], EXPERTS), np.float32)
        for place, expert in enumerate(self.foretold or ()):
            scores[..., expert] = EXPERTS - place
        return mx.array(scores)

    def token(self, one, other, foretold=None, *, pause: float = 0.0) -> mx.array:
        """A pass through both layers; with a pause between them, reads ahead have time to end."""
        self.foretold = list(other if foretold is None else foretold)
        x = mx.random.normal((1, 64), key=mx.random.key(1))
        y = self.first(x, mx.array([one]))
        mx.eval(y)
        time.sleep(pause)
        z = self.second(x, mx.array([other]))
        mx.eval(z)
        return mx.concatenate([y, z])


@pytest.fixture
def two_layers(checkpoints, open_bank):
    """A function (slots, directory) → TwoLayers."""

    def make(slots=SLOTS, directory=None) -> TwoLayers:
        return TwoLayers(open_bank(directory or checkpoints.engine(), slots))

    return make


def draws(seed: int, count: int):
    """Pairs of routes for both layers that a bank of ten cannot hold."""
    chance = random.Random(seed)
    return [(chance.sample(range(EXPERTS), 2), chance.sample(range(EXPERTS), 2)) for _ in range(count)]


def bytes_of(bank, totals) -> int:
    return (totals.misses + totals.prefetched - totals.prefetch_used) * bank.source.schemas[0].nbytes


def test_what_is_foretold_is_read_ahead_and_found(two_layers) -> None:
    layers, plain = two_layers(), two_layers(16)
    for one, other in draws(1, 150):
        assert mx.array_equal(layers.token(one, other, pause=0.002), plain.token(one, other))
    layers.bank.check()
    totals, second = layers.bank.totals(), layers.bank.layers[1].counters
    assert second.prefetch_used > 0 and second.prefetched >= second.prefetch_used
    assert second.misses >= second.prefetch_used, "what the bank did not hold was missed"
    assert totals.bytes_read == bytes_of(layers.bank, totals)
    assert layers.bank.prefetch_refusal is None and layers.bank.prefetch_slots == 2


def test_without_a_pause_the_results_are_the_same(two_layers) -> None:
    layers, plain = two_layers(), two_layers(16)
    for one, other in draws(2, 150):
        assert mx.array_equal(layers.token(one, other), plain.token(one, other))
    layers.bank.check()
    assert layers.bank.totals().bytes_read == bytes_of(layers.bank, layers.bank.totals())


def test_wrong_guesses_cost_no_expert_its_place(two_layers) -> None:
    layers = two_layers()
    for one, other in draws(3, 60):
        layers.token(one, other, pause=0.002)  # the first of the ranking earn their trust
    keep = [(0, 1), (2, 3)]
    for _ in range(3):
        layers.token(*keep)
    layers.bank.quiesce()
    table, before = set(layers.bank.layers[0].pool.table), layers.bank.totals()
    wrong = [expert for expert in range(EXPERTS) if (1, expert) not in table]
    for _ in range(10):
        layers.token(*keep, foretold=wrong, pause=0.002)
    layers.bank.check()
    after = layers.bank.totals()
    assert set(layers.bank.layers[0].pool.table) == table
    assert after.prefetched > before.prefetched, "they were believed"
    assert (after.misses, after.evictions) == (before.misses, before.evictions)
    assert after.bytes_read == bytes_of(layers.bank, after)


def test_a_guess_that_comes_true_later_was_not_in_vain(two_layers) -> None:
    layers = two_layers()
    for one, other in draws(3, 60):
        layers.token(one, other, pause=0.002)
    for _ in range(3):
        layers.token((0, 1), (2, 3))
    layers.bank.quiesce()
    absent = [expert for expert in range(EXPERTS) if (1, expert) not in layers.bank.layers[1].pool.table]
    layers.token((0, 1), (2, 3), foretold=absent, pause=0.05)
    layers.bank.quiesce()
    before = layers.bank.totals()
    layers.token((0, 1), absent[:2])
    layers.bank.check()
    after = layers.bank.totals()
    read = after.since(before)
    assert read.misses == 2 and read.prefetch_used >= 1
    assert read.prefetched <= 2 - read.prefetch_used, "they had been counted"
    assert after.bytes_read == bytes_of(layers.bank, after)


SCALE = mx.arange(1, 65) / 32.0
"""Weights of gemma4's norms in front of its experts."""


def blocks(model):
    return (model.language_model if hasattr(model, "language_model") else model).model.layers


def choice(family: str, model, layer: int, x: mx.array) -> mx.array:
    """What the router of a layer chooses when its experts are given x, [n, k]."""
    block = blocks(model)[layer]
    if family == "gemma4":
        return block.router(x / SCALE)[0]  # as the layer before had it, in front of its norm
    if family == "deepseek_v4":
        return block.mlp.gate(x, mx.zeros(len(x), mx.uint32))[0]
    logits = block.mlp.router(x) if family == "gpt_oss" else block.mlp.gate(x)
    return mx.argsort(-logits, axis=-1)[:, : block.mlp.num_experts_per_tok if family == "gpt_oss" else 2]


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4", "deepseek_v4"])
def test_every_family_s_router_foretells_and_changes_no_bit(checkpoints, open_bank, build, family) -> None:
    directory = checkpoints.engine(family)
    inspection = inspect_checkpoint(directory)
    layers = inspection.shape.moe_layers
    experts = len(layers) * inspection.shape.num_experts
    bank, other = open_bank(directory, experts * 3 // 4), open_bank(directory, experts * 3 // 4)
    model = build(directory, bank, kernels=KERNELS)
    foretell_routes(model, inspection.adapter, layers)
    fenced = build(directory, other, kernels=KERNELS, in_graph=False)
    if family == "gemma4":
        for block in [*blocks(model), *blocks(fenced)]:
            block.pre_feedforward_layernorm_2.weight = SCALE
    assert bank.prefetch_refusal is None
    dispatches = [m for _, m in model.named_modules() if isinstance(m, GatherSwitchGLU)]
    told = {dispatch._layer.layer: dispatch._dispatch.scores_of for dispatch in dispatches}
    assert told[layers[-1]] is None
    x = mx.random.normal((20, inspection.shape.hidden_size), key=mx.random.key(4))
    foretold = 0
    for layer, after in zip(layers, layers[1:], strict=False):
        if told[layer] is None:
            continue  # a hashed layer comes after it
        foretold += 1
        chosen = choice(family, model, after, x)
        scores = mx.argsort(-told[layer](x), axis=-1)[:, : chosen.shape[-1]]
        assert np.array_equal(np.sort(np.array(scores)), np.sort(np.array(chosen)))
    assert foretold > 0
    chance = random.Random(5)
    cache, reference = make_prompt_cache(model), make_prompt_cache(fenced)
    for _ in range(40):
        tokens = mx.array([[chance.randrange(96) for _ in range(chance.choice([1, 1, 1, 3]))]])
        assert mx.array_equal(model(tokens, cache=cache), fenced(tokens, cache=reference))
    bank.check()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(data=st.data())
def test_any_guesses_and_sizes_keep_the_bank_right(two_layers, data) -> None:
    layers, plain = two_layers(data.draw(st.integers(8, 15))), two_layers(16)
    routes = st.lists(st.integers(0, EXPERTS - 1), min_size=2, max_size=2, unique=True)
    try:
        for _ in range(data.draw(st.integers(20, 40))):
            one, other = data.draw(routes), data.draw(routes)
            wrong = data.draw(st.booleans())
            pause = data.draw(st.sampled_from([0, 0, 0.001]))
            out = layers.token(one, other, foretold=[7, 0] if wrong else None, pause=pause)
            assert mx.array_equal(out, plain.token(one, other))
            event = data.draw(st.integers(0, 9))
            if event == 0:
                layers.bank.resize(data.draw(st.integers(0, layers.bank.declared_bytes)))
            elif event == 1:
                layers.bank.abandon()
            elif event == 2:
                layers.bank.quiesce()
                layers.bank.layers[1].acquire(other)  # as a prompt does
                layers.bank.release()
            if event < 5:
                layers.bank.check()
        layers.bank.check()
        assert layers.bank.totals().bytes_read == bytes_of(layers.bank, layers.bank.totals())
    finally:
        layers.bank.close()
        plain.bank.close()


def trusting(layers: TwoLayers) -> None:
    """The first of the ranking have been right often; none of expert 6 of the second layer was needed."""
    chance = random.Random(7)
    usual = [expert for expert in range(EXPERTS) if expert != 6]
    for _ in range(80):
        layers.token(chance.sample(range(EXPERTS), 2), chance.sample(usual, 2), pause=0.001)
    layers.bank.quiesce()
    assert layers.bank.totals().prefetch_used > 0


def test_a_bad_record_is_told_when_it_is_needed_and_not_before(
    two_layers, checkpoints, copy_checkpoint
) -> None:
    directory = copy_checkpoint(checkpoints.engine())
    path = directory / "expert_sidecar" / "layer_01.bin"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // EXPERTS * 6] ^= 1
    path.write_bytes(raw)
    layers = two_layers(directory=directory)
    trusting(layers)
    for _ in range(5):
        layers.token((0, 1), (2, 3), foretold=[6, 2], pause=0.005)
    layers.bank.quiesce()
    for _ in range(2):
        layers.token((0, 1), (2, 6), pause=0.005)
        with pytest.raises(SidecarCorruptionError, match="layer 1, expert 6: the bytes"):
            layers.bank.quiesce()
        layers.bank.check()
    assert mx.isfinite(layers.token((0, 1), (2, 3))).all()
    layers.bank.check()


def test_a_file_that_becomes_short_is_told_when_it_is_needed(
    two_layers, checkpoints, copy_checkpoint
) -> None:
    directory = copy_checkpoint(checkpoints.engine())
    layers = two_layers(directory=directory)
    trusting(layers)
    path = directory / "expert_sidecar" / "layer_01.bin"
    os.truncate(path, path.stat().st_size // EXPERTS * 6)
    for _ in range(5):
        layers.token((0, 1), (2, 3), foretold=[6, 2], pause=0.005)
    layers.token((0, 1), (2, 6))
    with pytest.raises(ExpertReadError, match="layer 1, expert 6: cannot be read"):
        layers.bank.quiesce()
    layers.bank.check()


def test_a_bank_that_grows_whole_or_shrinks_to_one_token_has_no_reserve(two_layers) -> None:
    layers = two_layers()
    bank = layers.bank
    assert bank.prefetch_slots == 2
    bank.resize(bank.least_bytes)
    assert (bank.prefetch_slots, bank.prefetch_refusal) == (0, "the bank has no slots to spare for it")
    layers.token((0, 1), (2, 3))
    bank.resize(bank.declared_bytes)
    assert (bank.prefetch_slots, bank.slots) == (2, SLOTS)
    layers.token((0, 1), (2, 3))
    bank.check()
    whole = two_layers(16)
    assert (whole.bank.prefetch_slots, whole.bank.prefetch_refusal) == (0, "every expert has a slot")


def test_why_nothing_is_read_ahead_is_said(checkpoints, open_bank) -> None:
    def refusal(no_prefetch=None, **options) -> str | None:
        bank = open_bank(checkpoints.engine(), SLOTS, no_prefetch=no_prefetch)
        GatherSwitchGLU(bank, 0, SwiGLU(), kernels=KERNELS, **options)
        assert bank.stats()["prefetch_refusal"] == bank.prefetch_refusal
        return bank.prefetch_refusal

    assert refusal() is None
    assert refusal("nobody wants it") == "nobody wants it"
    assert refusal(in_graph=False) == "no pass finds its experts by itself: see the layers' dispatch"
