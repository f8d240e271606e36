from importlib import import_module

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.switch_layers import SwiGLU
from mlx_lm.utils import load_model

from mach.io.arch_registry import REGISTRY
from mach.io.inspection import inspect_checkpoint
from mach_store.cpu_kernels import open_kernels
from mach_store.errors import DispatchCancelledError, SidecarCorruptionError, StoreError
from mach_store.gather_switch_glu import GatherSwitchGLU
from mach_store.model_repairs import widen_embeddings
from mach_store.resident_cache import ResidentStackedExpertCache
from mach_store.settings import StoreSettings

FAMILIES = ("qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4", "deepseek_v4")
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79]


def logits_of(model, tokens, *, chunk: int) -> mx.array:
    """The logits after each chunk of `tokens`, with a cache, so that later chunks depend on earlier ones."""
    cache = make_prompt_cache(model)
    rows = []
    for first in range(0, len(tokens), chunk):
        out = model(mx.array([tokens[first : first + chunk]]), cache=cache)
        mx.eval(out)
        rows.append(out[0, -1])
    return mx.stack(rows)


@pytest.mark.parametrize("quantization", ["affine", "mxfp4", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gather_equals_the_disk_loop(checkpoints, open_bank, build, family, quantization) -> None:
    directory = checkpoints.engine(family, quantization)
    bank = open_bank(directory, 9 if family in ("qwen3_5_moe", "deepseek_v4") else 5)
    gather = logits_of(build(directory, bank, transient_min_tokens=1 << 20), PROMPT, chunk=1)
    bank.check()
    assert bank.totals().evictions > 0
    disk = logits_of(build(directory, bank, dispatch="disk"), PROMPT, chunk=1)
    assert mx.array_equal(gather, disk)
    assert mx.isfinite(gather).all()
    assert len({int(row.argmax().item()) for row in gather}) > 1


@pytest.mark.parametrize("quantization", ["affine", "mxfp4", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_bank_size_equals_the_unswapped_model(
    checkpoints, open_bank, build, family, quantization
) -> None:
    module = import_module(REGISTRY[family].implementation)
    reference, _ = load_model(
        checkpoints.stacked(family, quantization),
        get_model_classes=lambda config: (module.Model, module.ModelArgs),
    )
    reference.set_dtype(mx.float32)
    widen_embeddings(reference)
    expected = logits_of(reference, PROMPT, chunk=1)
    directory = checkpoints.engine(family, quantization)
    layers = len(open_bank(directory, 1 << 10).layers)
    for slots in sorted({2 * layers, 2 * layers + 1, 4 * layers, 8 * layers - 1, 8 * layers}):
        bank = open_bank(directory, slots)
        assert bank.slots == slots
        assert mx.array_equal(logits_of(build(directory, bank), PROMPT, chunk=1), expected), slots
        bank.check()


def test_the_resident_store_equals_the_bank(checkpoints, open_bank, build) -> None:
    from_bank = logits_of(build(checkpoints.engine(), open_bank(checkpoints.engine(), 5)), PROMPT, chunk=4)
    store = ResidentStackedExpertCache(inspect_checkpoint(checkpoints.stacked()), mx.float32)
    assert mx.array_equal(logits_of(build(checkpoints.stacked(), store), PROMPT, chunk=4), from_bank)


def test_an_expert_that_does_not_exist_is_refused_on_the_host(checkpoints, open_bank) -> None:
    bank = open_bank(checkpoints.engine(), 5)
    dispatch = GatherSwitchGLU(bank, 0, lambda up, gate: up * gate)
    x = mx.zeros((1, 1, 64))
    for wrong in (8, -1, 1 << 20):
        with pytest.raises(StoreError, match="layer 0: the router chose an expert outside 0…7"):
            dispatch(x, mx.array([[[0, wrong]]]))
        bank.check()


@pytest.mark.parametrize("tokens", [1, 40], ids=["gather", "transient"])
def test_a_pass_that_is_cancelled_leaves_the_bank_usable(checkpoints, open_bank, build, tokens) -> None:
    bank = open_bank(checkpoints.engine(), 5)
    model = build(checkpoints.engine(), bank)
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked == 2

    before = logits_of(model, PROMPT, chunk=1)
    bank.cancelled = cancelled
    with pytest.raises(DispatchCancelledError):
        mx.eval(model(mx.array([[5] * tokens])))
    bank.abandon()
    bank.check()
    bank.cancelled = lambda: False
    assert mx.array_equal(logits_of(model, PROMPT, chunk=1), before)


def in_every_store(checkpoints, open_bank):
    whole = open_bank(checkpoints.engine(), 1 << 10)
    whole.prewarm()
    return whole, ResidentStackedExpertCache(inspect_checkpoint(checkpoints.stacked()), mx.float32)


def test_a_long_pass_can_be_cancelled_in_every_layer_although_all_experts_are_in_memory(
    checkpoints, open_bank
) -> None:
    kernels = open_kernels(StoreSettings())
    ids = mx.broadcast_to(mx.array([1, 2], mx.uint32), (1, 64, 2))
    for store in in_every_store(checkpoints, open_bank):
        dispatch = GatherSwitchGLU(store, 0, SwiGLU(), kernels=kernels)
        there = []
        store.cancelled = lambda there=there: there.append(mx.get_active_memory()) or len(there) == 3
        for tokens, computed in ((64, True), (16, False)):
            there.clear()
            x = mx.random.normal((tokens, 1 << 16)).reshape(1, tokens, 64, -1).sum(axis=-1)
            before = mx.get_active_memory()
            y = dispatch(x, ids[:, :tokens])
            # What comes before the layer has been computed when it is asked, but only in a long pass.
            assert (there[0] - before > x.nbytes // 2) == computed
            mx.eval(y)
        with pytest.raises(DispatchCancelledError):
            dispatch(x, ids[:, :16])
            dispatch(x, ids[:, :16])


@pytest.mark.parametrize("tokens", [1, 40], ids=["gather", "transient"])
def test_a_corrupt_record_stops_the_pass_and_the_bank_stays_whole(
    checkpoints, open_bank, build, copy_checkpoint, tokens
) -> None:
    directory = copy_checkpoint(checkpoints.engine())
    for layer in (0, 1):
        path = directory / "expert_sidecar" / f"layer_{layer:02d}.bin"
        raw = bytearray(path.read_bytes())
        raw[0] ^= 1
        path.write_bytes(raw)
    bank = open_bank(directory, 5)
    dispatch = GatherSwitchGLU(bank, 0, lambda up, gate: up * gate)
    x = mx.random.normal((1, tokens, 64), key=mx.random.key(1))
    good = mx.array([[[1, 2]] * tokens])
    before = dispatch(x, good)
    mx.eval(before)
    with pytest.raises(SidecarCorruptionError, match="layer 0, expert 0") as caught:
        dispatch(x, mx.array([[[1, 0]] * tokens]))
    assert (caught.value.layer, caught.value.expert) == (0, 0)
    assert caught.value.path.endswith("layer_00.bin")
    bank.abandon()
    bank.check()
    assert mx.array_equal(dispatch(x, good), before)


def test_a_pass_that_needs_more_than_its_share_goes_through_the_arena(checkpoints, open_bank, build) -> None:
    # 5 slots for two layers: a pass of six tokens must not take what the other layer needs.
    directory = checkpoints.engine()
    bank = open_bank(directory, 5)
    six = logits_of(build(directory, bank, transient_min_tokens=1 << 20), PROMPT[:12], chunk=6)
    bank.check()
    assert bank.totals().transient_reads > 0
    whole = open_bank(directory, 16)
    assert mx.array_equal(
        six, logits_of(build(directory, whole, transient_min_tokens=1 << 20), PROMPT[:12], chunk=6)
    )
    assert whole.totals().transient_reads == 0


def test_a_prewarmed_whole_bank_never_reads_again(checkpoints, open_bank, build) -> None:
    directory = checkpoints.engine()
    bank = open_bank(directory, 16)
    assert bank.whole
    assert not bank.host_free
    bank.prewarm()
    assert bank.host_free
    read = bank.totals().bytes_read
    logits_of(build(directory, bank), PROMPT, chunk=4)
    totals = bank.totals()
    assert (totals.bytes_read, totals.misses, totals.evictions) == (read, 0, 0)
    assert totals.hits > 0
    bank.check()


def test_routes_are_seen_while_they_are_observed_and_change_no_result(checkpoints, open_bank, build) -> None:
    directory = checkpoints.engine()
    bank = open_bank(directory, 16)
    model = build(directory, bank)
    bank.prewarm()
    assert bank.host_free
    unseen = logits_of(model, PROMPT, chunk=5)
    assert bank.drain_routes() == []
    bank.observe_routes(True)
    assert not bank.host_free
    assert mx.array_equal(logits_of(model, PROMPT, chunk=5), unseen)
    passes = bank.drain_routes()
    assert bank.drain_routes() == []
    layers = len(bank.layers)
    assert [routed.layer for routed in passes[: 2 * layers]] == [*range(layers)] * 2
    assert passes[0].ids.shape == (5, bank.top_k)
    assert passes[0].ids.max() < bank.source.num_experts
    bank.observe_routes(False)
    assert bank.host_free


def test_dispatch_modules_have_no_parameters(checkpoints, open_bank, build) -> None:
    directory = checkpoints.engine("gpt_oss")
    model = build(directory, open_bank(directory, 5))
    dispatch = model.model.layers[0].mlp.experts
    assert isinstance(dispatch, GatherSwitchGLU)
    assert dispatch.parameters() == {}
    assert dispatch.stats()["dispatch"] == "gather"
