import mlx.core as mx
import numpy as np
import pytest

from mach.io.inspection import inspect_checkpoint
from mach_store.cpu_kernels import open_kernels, stock_kernels
from mach_store.gather_switch_glu import GatherSwitchGLU
from mach_store.model_builder import build_model
from mach_store.model_kernels import use_kernels
from mach_store.resident_cache import ResidentStackedExpertCache
from mach_store.settings import StoreSettings

NATIVE = open_kernels(StoreSettings())
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79]


@pytest.fixture
def build_native():
    def build(directory, store, kernels=NATIVE, **options):
        inspection = inspect_checkpoint(directory)
        model, _ = build_model(
            directory,
            inspection.adapter,
            inspection.shape.moe_layers,
            lambda layer, old: GatherSwitchGLU(store, layer, old.activation, kernels=kernels, **options),
        )
        return model, use_kernels(model, kernels)

    return build


def logits_of(model, chunk):
    cache = model.make_cache() if hasattr(model, "make_cache") else None
    if cache is None:
        from mlx_lm.models.cache import make_prompt_cache  # noqa: PLC0415

        cache = make_prompt_cache(model)
    rows = []
    for first in range(0, len(PROMPT), chunk):
        out = model(mx.array([PROMPT[first : first + chunk]]), cache=cache)
        mx.eval(out)
        rows.append(np.array(out[0]))
    return np.concatenate(rows)


@pytest.mark.parametrize("quantization", ["affine", "mxfp4", "none"])
@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4", "deepseek_v4"])
def test_bank_arena_and_resident_give_the_same_bits_and_stock_ones_nearly(
    checkpoints, open_bank, build_native, family, quantization
) -> None:
    directory = checkpoints.engine(family, quantization)
    layers = len(inspect_checkpoint(directory).shape.moe_layers)
    small = open_bank(directory, 2 * layers + 1)
    model, report = build_native(directory, small, transient_min_tokens=1 << 20)
    assert report == {"name": NATIVE.name, "threads": NATIVE.threads, "stock": {}}
    from_bank = logits_of(model, 1)
    small.check()
    arena, _ = build_native(directory, open_bank(directory, 2 * layers), transient_min_tokens=2)
    whole, _ = build_native(directory, open_bank(directory, 8 * layers))
    assert (logits_of(whole, 1) == from_bank).all()
    through_arena, at_once = logits_of(arena, 16), logits_of(whole, 16)
    assert (through_arena == at_once).all()
    stock, said = build_native(directory, open_bank(directory, 8 * layers), stock_kernels("to compare"))
    assert said["reason"] == "to compare"
    expected = logits_of(stock, 1)
    assert np.abs(from_bank - expected).max() < 5e-5 * np.abs(expected).max()


def test_resident_experts_give_the_banks_bits(checkpoints, open_bank, build_native) -> None:
    store = ResidentStackedExpertCache(inspect_checkpoint(checkpoints.stacked()), mx.float32)
    resident, _ = build_native(checkpoints.stacked(), store)
    bank, _ = build_native(checkpoints.engine(), open_bank(checkpoints.engine(), 5))
    assert (logits_of(resident, 4) == logits_of(bank, 4)).all()


def test_what_stays_on_stock_operations_is_reported_with_its_reason(checkpoints, open_bank) -> None:
    directory = checkpoints.engine()
    bank = open_bank(directory, 16)
    inspection = inspect_checkpoint(directory)
    model, _ = build_model(
        directory,
        inspection.adapter,
        inspection.shape.moe_layers,
        lambda layer, _: GatherSwitchGLU(bank, layer, lambda up, gate: up * gate, kernels=NATIVE),
    )
    stock = use_kernels(model, NATIVE)["stock"]
    assert set(stock) == {"model.layers.0.mlp.switch_mlp", "model.layers.1.mlp.switch_mlp"}
    assert all("no activation like function" in reason for reason in stock.values())
