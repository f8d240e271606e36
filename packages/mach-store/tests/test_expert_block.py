import sys
from types import SimpleNamespace

import mlx.core as mx
import pytest
from mlx_lm.models.activations import SwigluOAI
from mlx_lm.models.gemma4_text import GeGLU
from mlx_lm.models.switch_layers import SwiGLU

from mach.io.sidecar_layout import PROJECTIONS, Quantization
from mach_store.cpu_kernels import open_kernels, stock_kernels
from mach_store.deepseek_v4.routing import ClampedSwiGLU
from mach_store.expert_block import ExpertBlock, ExpertTensors, NativeActivation, native_activation
from mach_store.settings import StoreSettings

EXPERTS, HIDDEN, WIDTH = 5, 64, 128
NATIVE = open_kernels(StoreSettings())


def experts(quantization, dtype=mx.float32):
    components = {}
    for i, projection in enumerate(PROJECTIONS):
        rows, columns = (HIDDEN, WIDTH) if projection == "down_proj" else (WIDTH, HIDDEN)
        weight = (mx.random.normal((EXPERTS, rows, columns), key=mx.random.key(i)) * 0.1).astype(dtype)
        parts = {"weight": weight}
        if quantization is not None:
            mode, bits, group = quantization.mode, quantization.bits, quantization.group_size
            packed = mx.quantize(weight, group, bits, mode=mode)
            parts = dict(zip(("weight", "scales", "biases"), packed, strict=False))
        components[projection] = parts
    mx.eval(components)
    return ExpertTensors(components), dict.fromkeys(PROJECTIONS, quantization)


def routes(tokens):
    x = mx.random.normal((1, tokens, HIDDEN), key=mx.random.key(20))
    return x, mx.random.randint(0, EXPERTS, (1, tokens, 2), key=mx.random.key(21)).astype(mx.uint32)


@pytest.mark.parametrize(
    "activation", [SwiGLU(), SwigluOAI(), GeGLU(), ClampedSwiGLU(0.5)], ids=lambda a: type(a).__name__
)
@pytest.mark.parametrize(
    "quantization",
    [
        None,
        Quantization(mode="affine", bits=4, group_size=32),
        Quantization(mode="affine", bits=8, group_size=64),
        Quantization(mode="mxfp4", bits=4, group_size=32),
    ],
    ids=str,
)
def test_native_kernels_give_what_the_familys_own_module_gives(quantization, activation) -> None:
    tensors, packing = experts(quantization)
    native = ExpertBlock(activation, NATIVE)
    stock = ExpertBlock(activation, stock_kernels("for comparison"))
    for tokens in (1, 40):
        x, slots = routes(tokens)
        expected = stock(tensors, packing, x, slots)
        y = native(tensors, packing, x, slots)
        assert y.shape == expected.shape == (1, tokens, 2, HIDDEN)
        assert mx.allclose(y, expected, rtol=1e-4, atol=1e-5 * float(mx.abs(expected).max()))
    assert native.as_dict() == {"kernels": NATIVE.name}
    assert stock.as_dict() == {"kernels": "mlx", "kernels_reason": "for comparison"}


def test_a_product_is_made_once_for_the_arrays_and_sees_what_is_written_into_them() -> None:
    tensors, packing = experts(None)
    block = ExpertBlock(SwiGLU(), NATIVE)
    x, slots = routes(2)
    mx.eval(block(tensors, packing, x, slots))
    activation = NativeActivation("swiglu")
    assert tensors.product(NATIVE, activation, packing) is tensors.product(NATIVE, activation, packing)
    for array in tensors["down_proj"].values():
        memoryview(array).cast("B")[:] = bytes(array.nbytes)
    assert not block(tensors, packing, x, slots).any()


@pytest.mark.parametrize(
    ("quantization", "activation", "reason"),
    [
        (Quantization(mode="affine", bits=3, group_size=64), SwiGLU(), "affine, 3 bits"),
        (Quantization(mode="nvfp4", bits=4, group_size=16), SwiGLU(), "mode nvfp4"),
        (None, lambda up, gate: up * gate, "no activation like function"),
    ],
    ids=["bits", "mode", "activation"],
)
def test_what_the_kernels_cannot_do_stays_on_stock_operations_and_says_why(
    quantization, activation, reason
) -> None:
    tensors, packing = experts(quantization)
    block = ExpertBlock(activation, NATIVE)
    stock = ExpertBlock(activation, stock_kernels("for comparison"))
    x, slots = routes(3)
    assert mx.array_equal(block(tensors, packing, x, slots), stock(tensors, packing, x, slots))
    assert reason in block.as_dict()["kernels_reason"]


def test_activations_are_recognised_with_their_parameters() -> None:
    assert native_activation(SwiGLU()) == ("swiglu", None, None)
    assert native_activation(ClampedSwiGLU(7.0)) == ("swiglu", None, 7.0)
    assert native_activation(SwigluOAI()) == ("swiglu_oai", 1.702, 7.0)
    assert native_activation(SimpleNamespace()) is None
    tensors, packing = experts(None)
    x, slots = routes(3)
    expected = ExpertBlock(ClampedSwiGLU(2.0), stock_kernels("for comparison"))(
        tensors, packing, 9 * x, slots
    )
    y = ExpertBlock(ClampedSwiGLU(2.0), NATIVE)(tensors, packing, 9 * x, slots)
    assert mx.allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_kernels_are_chosen_by_settings_device_and_what_is_installed(monkeypatch) -> None:
    assert NATIVE.native
    assert NATIVE.as_dict() == {"name": NATIVE.name, "threads": NATIVE.threads}
    assert open_kernels(StoreSettings(cpu_threads=3)).threads == 3
    off = open_kernels(StoreSettings(cpu_kernels=False))
    assert (off.native, off.as_dict()["reason"]) == (False, "switched off by LME_CPU_KERNELS=0")
    monkeypatch.setattr(mx, "default_device", lambda: SimpleNamespace(type=mx.DeviceType.gpu))
    assert open_kernels(StoreSettings()).reason == "MLX computes on the GPU"
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "lme_cpu_kernels", None)
    assert open_kernels(StoreSettings()).reason.startswith("lme_cpu_kernels cannot be imported")
