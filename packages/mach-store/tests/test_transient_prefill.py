import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mach_store.gather_switch_glu import GatherSwitchGLU

FAMILIES = ("qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4", "deepseek_v4")
TOKENS = np.random.default_rng(3).integers(0, 96, 80).tolist()


def run(model, *, chunk: int, decode: int = 6) -> list[mx.array]:
    """The logits of the prompt's last token and of a few greedy tokens after it."""
    cache = make_prompt_cache(model)
    for first in range(0, len(TOKENS), chunk):
        out = model(mx.array([TOKENS[first : first + chunk]]), cache=cache)
        mx.eval(out)
    rows = [out[0, -1]]
    for _ in range(decode):
        rows.append(model(mx.argmax(rows[-1]).reshape(1, 1), cache=cache)[0, -1])
        mx.eval(rows[-1])
    return rows


@pytest.mark.parametrize("scratch_experts", [1, 2, 3, 8])
@pytest.mark.parametrize("chunk", [1, 7, 64, 80])
def test_transient_prefill_equals_one_shot_and_so_do_the_tokens_after_it(
    checkpoints, open_bank, build, scratch_experts, chunk
) -> None:
    directory = checkpoints.engine()
    whole = open_bank(directory, 16)
    whole.prewarm()
    expected = run(build(directory, whole), chunk=chunk)
    assert whole.totals().transient_reads == 0
    bank = open_bank(directory, 6, scratch_experts=scratch_experts)
    got = run(build(directory, bank, transient_min_tokens=2), chunk=chunk)
    bank.check()
    for mine, theirs in zip(got, expected, strict=True):
        assert mx.array_equal(mine, theirs)
    if chunk > 1:
        assert bank.totals().transient_reads > 0


@pytest.mark.parametrize("chunk", [7, 80])
@pytest.mark.parametrize("quantization", ["affine", "mxfp4", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_transient_prefill_equals_one_shot_in_every_family(
    checkpoints, open_bank, build, family, quantization, chunk
) -> None:
    directory = checkpoints.engine(family, quantization)
    whole = open_bank(directory, 1 << 10)
    whole.prewarm()
    expected = run(build(directory, whole), chunk=chunk, decode=2)
    bank = open_bank(directory, 9, scratch_experts=2)
    got = run(build(directory, bank, transient_min_tokens=2), chunk=chunk, decode=2)
    for mine, theirs in zip(got, expected, strict=True):
        assert mx.array_equal(mine, theirs)
    bank.check()


def test_chunks_of_any_size_choose_the_same_tokens(checkpoints, open_bank, build) -> None:
    directory = checkpoints.engine()
    runs = []
    for chunk in (1, 7, 64, 80):
        bank = open_bank(directory, 6, scratch_experts=2)
        runs.append(run(build(directory, bank, transient_min_tokens=2), chunk=chunk))
    for other in runs[1:]:
        for mine, theirs in zip(other, runs[0], strict=True):
            assert mx.allclose(mine, theirs, atol=1e-4)
            assert int(mine.argmax().item()) == int(theirs.argmax().item())


@pytest.fixture
def dispatch_over(checkpoints, open_bank):
    """A function (slots, scratch experts) → the bank, and a function that routes passes of 32 tokens."""

    def make(slots: int, scratch_experts: int = 2):
        bank = open_bank(checkpoints.engine(), slots, scratch_experts=scratch_experts)
        modules = {
            layer: GatherSwitchGLU(bank, layer, lambda up, gate: up * gate, transient_min_tokens=32)
            for layer in bank.layers
        }
        x = mx.random.normal((1, 32, 64), key=mx.random.key(2))

        def go(layer: int, pairs: list[list[int]]) -> mx.array:
            y = modules[layer](x[:, : len(pairs)], mx.array([pairs]))
            mx.eval(y)
            return y

        return bank, go

    return make


def resident(bank, layer: int) -> list[int]:
    return bank.layers[layer].resident(range(8))


def test_prefill_fills_free_slots_with_the_hottest_experts_and_no_more_than_the_share(dispatch_over) -> None:
    bank, go = dispatch_over(6)  # a share of three slots for each of two layers
    hot = [[0, 1]] * 14 + [[0, 2]] * 10 + [[1, 3]] * 5 + [[4, 5]] * 3
    go(0, hot)
    bank.check()
    assert resident(bank, 0) == [0, 1, 2]
    assert bank.totals().evictions == 0
    assert bank.totals().transient_reads == 3
    assert bank.totals().misses == 6


def test_prefill_evicts_nothing(dispatch_over) -> None:
    bank, go = dispatch_over(4)
    go(0, [[6, 7]])
    go(1, [[4, 5]])
    assert (resident(bank, 0), resident(bank, 1)) == ([6, 7], [4, 5])
    go(0, [[0, 1]] * 16 + [[2, 6]] * 16)
    bank.check()
    assert (resident(bank, 0), resident(bank, 1)) == ([6, 7], [4, 5])
    assert bank.totals().evictions == 0
    assert bank.layers[0].counters.hits == 1
    assert bank.layers[0].counters.transient_reads == 3


def test_prefill_reads_each_expert_once_for_all_its_tokens(dispatch_over) -> None:
    bank, go = dispatch_over(4)
    go(0, [[expert, (expert + 1) % 8] for expert in range(8)] * 4)
    counters = bank.layers[0].counters
    assert counters.misses == 8
    assert counters.bytes_read == 8 * bank.source.schemas[0].nbytes


def test_prefill_gives_each_token_its_own_experts_in_its_own_order(dispatch_over) -> None:
    random = np.random.default_rng(11)
    pairs = [random.permutation(8)[:2].tolist() for _ in range(32)]
    _, transient = dispatch_over(4, 1)
    _, whole = dispatch_over(16)
    assert mx.array_equal(transient(0, pairs), whole(0, pairs))
    swapped = transient(0, [pair[::-1] for pair in pairs])
    assert mx.array_equal(swapped[..., ::-1, :], whole(0, pairs))


def test_the_arena_is_made_at_its_first_use_and_counted(dispatch_over) -> None:
    bank, go = dispatch_over(4, 3)
    go(0, [[0, 1]])
    assert bank.stats()["scratch_bytes"] == 0
    go(0, [[2, 3]] * 32)
    assert bank.stats()["scratch_bytes"] == bank.scratch_bytes > 0
