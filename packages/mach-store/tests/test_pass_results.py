import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.switch_layers import SwiGLU

from mach.io.sidecar_layout import PROJECTIONS, Quantization
from mach_store.cpu_kernels import open_kernels, stock_kernels
from mach_store.expert_block import ExpertBlock, ExpertTensors
from mach_store.pass_results import PassResults
from mach_store.settings import StoreSettings

EXPERTS, HIDDEN, WIDTH, TOKENS, K = 6, 64, 96, 40, 3
PACKED = Quantization(mode="affine", bits=4, group_size=32)


@pytest.fixture
def tensors() -> ExpertTensors:
    components = {}
    for i, projection in enumerate(PROJECTIONS):
        rows, columns = (HIDDEN, WIDTH) if projection == "down_proj" else (WIDTH, HIDDEN)
        weight = mx.random.normal((EXPERTS, rows, columns), key=mx.random.key(i)) * 0.1
        parts = mx.quantize(weight, 32, 4)
        components[projection] = dict(zip(("weight", "scales", "biases"), parts, strict=True))
    mx.eval(components)
    return ExpertTensors(components)


@pytest.mark.parametrize("kernels", [open_kernels(StoreSettings()), stock_kernels("to compare")], ids=str)
@pytest.mark.parametrize("parts", [1, 2, 5, 120])
def test_parts_in_any_order_give_the_whole_to_the_bit(tensors, kernels, parts) -> None:
    dice = np.random.default_rng(parts)
    packing = dict.fromkeys(PROJECTIONS, PACKED)
    block = ExpertBlock(SwiGLU(), kernels)
    x = mx.random.normal((TOKENS, HIDDEN), key=mx.random.key(9))
    slots = np.stack([dice.permutation(EXPERTS)[:K] for _ in range(TOKENS)]).astype(np.uint32)
    whole = block(tensors, packing, x, mx.array(slots))
    results = PassResults(block, packing, x, K)
    for routes in np.array_split(dice.permutation(TOKENS * K), parts):
        results.compute(tensors, routes, slots.reshape(-1)[routes])
    y = results.take()
    assert y.shape == (TOKENS, K, HIDDEN)
    assert mx.array_equal(y, whole)


def test_what_was_computed_does_not_change_when_the_tensors_are_overwritten(tensors) -> None:
    packing = dict.fromkeys(PROJECTIONS, PACKED)
    for kernels in (open_kernels(StoreSettings()), stock_kernels("to compare")):
        block = ExpertBlock(SwiGLU(), kernels)
        x = mx.random.normal((2, HIDDEN), key=mx.random.key(9))
        expected = block(tensors, packing, x, mx.array([[0], [0]], mx.uint32))
        mx.eval(expected)
        results = PassResults(block, packing, x, 1)
        results.compute(tensors, np.array([1]), np.zeros(1, np.uint32))
        kept = bytes(memoryview(tensors["down_proj"]["weight"]))
        memoryview(tensors["down_proj"]["weight"]).cast("B")[:] = bytes(len(kept))
        changed = block(tensors, packing, x[:1], mx.array([[0]], mx.uint32))
        results.compute(tensors, np.array([0]), np.zeros(1, np.uint32))
        y = results.take()
        assert mx.array_equal(y[1], expected[1])
        assert mx.array_equal(y[:1], changed) and not mx.array_equal(changed, expected[:1])
        memoryview(tensors["down_proj"]["weight"]).cast("B")[:] = kept
