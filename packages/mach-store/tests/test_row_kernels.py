import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import qwen3_moe
from mlx_lm.models.cache import KVCache, QuantizedKVCache, make_prompt_cache
from mlx_lm.utils import load_model

from mach_store.cpu_kernels import open_kernels, stock_kernels
from mach_store.dense_kernels import use_dense_kernels
from mach_store.row_kernels import KernelRMSNorm, KernelRoPE, use_row_kernels
from mach_store.settings import StoreSettings

NATIVE = open_kernels(StoreSettings())
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84, 19, 71, 69, 39, 93]


def logits(model, chunk):
    cache = make_prompt_cache(model)
    rows = []
    for first in range(0, len(PROMPT), chunk):
        out = model(mx.array([PROMPT[first : first + chunk]]), cache=cache)
        mx.eval(out)
        rows.append(out[0])
    return mx.concatenate(rows)


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4"])
def test_a_family_gives_its_logits_within_rounding_however_the_prompt_is_cut(checkpoints, family) -> None:
    directory = checkpoints.stacked(family, "affine")
    stock, ours = (load_model(directory)[0] for _ in range(2))
    for model in (stock, ours):
        model.set_dtype(mx.float32)
        mx.eval(model.parameters())
    before = {name: array.shape for name, array in tree_flatten(ours.parameters())}
    assert use_dense_kernels(ours, NATIVE) == {}
    use_row_kernels(ours, NATIVE)
    assert {name: array.shape for name, array in tree_flatten(ours.parameters())} == before
    expected = logits(stock, 1)
    one_by_one = logits(ours, 1)
    scale = float(mx.abs(expected).max())
    assert float(mx.abs(one_by_one - expected).max()) < 2e-5 * scale
    for chunk in (3, 7, len(PROMPT)):
        assert float(mx.abs(logits(ours, chunk) - one_by_one).max()) < 2e-5 * scale
    kinds = {type(module).__name__ for _, module in ours.named_modules()}
    assert "KernelRMSNorm" in kinds
    assert any(kind.startswith("Kernel") and "Attention" in kind for kind in kinds)


def test_a_prompt_gives_the_same_bits_however_it_is_cut(checkpoints) -> None:
    model, _ = load_model(checkpoints.stacked("qwen3_moe", "affine"))
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    use_dense_kernels(model, NATIVE)
    use_row_kernels(model, NATIVE)
    # Everything but the routed experts, which mlx-lm computes here, and the weighted sum.
    attention = model.model.layers[0].self_attn
    x = mx.random.normal((1, 30, 64), key=mx.random.key(1))
    whole = attention(x, "causal", KVCache())
    cache, parts = KVCache(), []
    for first, last in ((0, 1), (1, 4), (4, 21), (21, 30)):
        parts.append(attention(x[:, first:last], "causal" if last - first > 1 else None, cache))
        mx.eval(parts)
    assert mx.array_equal(mx.concatenate(parts, 1), whole)


def test_mlx_lms_own_classes_and_function_stay_as_they_are(checkpoints) -> None:
    call = qwen3_moe.Attention.__call__
    function = qwen3_moe.scaled_dot_product_attention
    model, _ = load_model(checkpoints.stacked("qwen3_moe", "affine"))
    use_row_kernels(model, NATIVE)
    layers = [layer.self_attn for layer in model.model.layers]
    assert all(type(layer) is type(layers[0]) is not qwen3_moe.Attention for layer in layers)
    assert all(isinstance(layer, qwen3_moe.Attention) for layer in layers)
    assert qwen3_moe.Attention.__call__ is call
    assert qwen3_moe.scaled_dot_product_attention is function


def test_what_is_not_exactly_mlxs_own_layer_stays() -> None:
    class OtherNorm(nn.RMSNorm):
        def __call__(self, x):
            return 2 * super().__call__(x)

    model = nn.Sequential(OtherNorm(8), nn.LayerNorm(8), nn.RMSNorm(8), nn.RoPE(8))
    mx.eval(model.parameters())
    use_row_kernels(model, stock_kernels("switched off"))
    assert type(model.layers[2]) is nn.RMSNorm
    use_row_kernels(model, NATIVE)
    kinds = [type(layer) for layer in model.layers]
    assert kinds == [OtherNorm, nn.LayerNorm, KernelRMSNorm, KernelRoPE]


def test_other_dtypes_offsets_and_caches_go_to_stock_operations() -> None:
    model = nn.Sequential(nn.RMSNorm(8), nn.RoPE(8))
    mx.eval(model.parameters())
    norm, rope = model.layers
    use_row_kernels(model, NATIVE)
    ours_norm, ours_rope = model.layers
    x = mx.random.normal((2, 1, 3, 8), key=mx.random.key(2))
    assert mx.array_equal(ours_norm(x.astype(mx.bfloat16)), norm(x.astype(mx.bfloat16)))
    offsets = mx.array([3, 5])
    assert mx.array_equal(ours_rope(x, offset=offsets), rope(x, offset=offsets))
    assert np.allclose(ours_rope(x, offset=5)[1], rope(x, offset=offsets)[1], atol=1e-5)


def test_quantised_key_value_caches_still_work(checkpoints) -> None:
    model, _ = load_model(checkpoints.stacked("qwen3_moe", "affine"))
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    use_row_kernels(model, NATIVE)
    cache = [QuantizedKVCache(group_size=32, bits=8) for _ in model.layers]
    assert mx.isfinite(model(mx.array([PROMPT]), cache=cache)).all()
