import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mach_store.cpu_kernels import open_kernels, stock_kernels
from mach_store.dense_kernels import KernelEmbedding, KernelLinear, use_dense_kernels
from mach_store.settings import StoreSettings

NATIVE = open_kernels(StoreSettings())


class Head(nn.Module):
    """Every kind of layer that is replaced, and some that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(96, 64)
        self.layers = [nn.Linear(64, 128, bias=True), nn.Linear(128, 64, bias=False)]
        self.inner = {"norm": nn.RMSNorm(64), "odd": nn.Linear(64, 33)}

    def __call__(self, ids):
        x = self.embed(ids)
        x = x + self.layers[1](mx.tanh(self.layers[0](x)))
        return self.embed.as_linear(self.inner["norm"](x)), self.inner["odd"](x)


def model(bits=None, mode="affine") -> Head:
    mx.random.seed(3)
    made = Head()
    if bits is not None:
        nn.quantize(made, 32, bits, mode=mode)
    mx.eval(made.parameters())
    return made


def test_replaced_layers_compute_the_same_within_rounding_and_keep_their_parameters() -> None:
    ids = mx.array([[1, 5, 90], [0, 95, 7]])
    for bits, mode in ((None, "affine"), (4, "affine"), (8, "affine"), (4, "mxfp4")):
        stock, ours = model(bits, mode), model(bits, mode)
        before = {name: np.array(a) for name, a in tree_flatten(ours.parameters())}
        assert use_dense_kernels(ours, NATIVE) == {}
        assert isinstance(ours.layers[0], KernelLinear)
        assert isinstance(ours.inner["odd"], KernelLinear)
        assert isinstance(ours.embed, KernelEmbedding if bits else nn.Embedding)
        after = dict(tree_flatten(ours.parameters()))
        assert set(after) == set(before)
        assert all((np.array(after[name]) == before[name]).all() for name in before)
        for mine, theirs in zip(ours(ids), stock(ids), strict=True):
            # Stock operations unpack mxfp4 to bfloat16.
            assert mx.allclose(mine, theirs, rtol=1e-4, atol=2e-2 if mode == "mxfp4" else 1e-5)


def test_what_the_kernels_cannot_take_stays_and_is_reported() -> None:
    ours = model(3)
    refused = use_dense_kernels(ours, NATIVE)
    assert set(refused) == {"embed", "layers.0", "layers.1", "inner.odd"}
    assert all("affine, 3 bits" in reason for reason in refused.values())
    assert isinstance(ours.layers[0], nn.QuantizedLinear)


def test_nothing_is_replaced_without_native_kernels() -> None:
    ours = model(4)
    assert use_dense_kernels(ours, stock_kernels("switched off")) == {}
    assert isinstance(ours.layers[0], nn.QuantizedLinear)
