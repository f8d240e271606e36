"""Normalisation, rotary positions and attention against float64 arithmetic and stock MLX operations."""

import itertools
import math

import mlx.core as mx
import numpy as np
import pytest

from lme_cpu_kernels import RmsNorm, Rotary, attention, kernel_sets

pytestmark = pytest.mark.usefixtures("on_the_cpu")


def numbers(dice, *shape):
    return mx.array(dice.normal(0, 1, shape).astype(np.float32))


def exact(array):
    return np.array(array).astype(np.float64)


@pytest.mark.parametrize("kernels", kernel_sets())
def test_rms_norm_equals_float64_and_mlx(kernels) -> None:
    dice = np.random.default_rng(1)
    for width in (1, 7, 16, 40, 256, 2880):
        x, weight = numbers(dice, 3, 5, width), numbers(dice, width)
        plain = exact(x) / np.sqrt(np.mean(exact(x) ** 2, -1, keepdims=True) + 1e-5)
        y = RmsNorm(weight, 1e-5, kernels=kernels)(x)
        assert np.allclose(exact(y), plain * exact(weight), rtol=1e-6, atol=1e-7)
        assert mx.allclose(y, mx.fast.rms_norm(x, weight, 1e-5), rtol=2e-6, atol=1e-6)
        assert np.allclose(exact(RmsNorm(None, 1e-5, kernels=kernels)(x)), plain, rtol=1e-6, atol=1e-7)
        one = RmsNorm(weight, 1e-5, kernels=kernel_sets()[0])(x[1:2, 2:3])
        assert (np.array(one)[0, 0] == np.array(y)[1, 2]).all()


@pytest.mark.parametrize("traditional", [False, True])
def test_rotary_positions_equal_mlx_wherever_a_row_stands(traditional) -> None:
    dice = np.random.default_rng(2)
    for width, dims, base, scale in ((64, 64, 1e4, 1.0), (64, 16, 1e6, 0.5), (10, 6, 100.0, 1.0)):
        x = numbers(dice, 2, 9, 3, width).transpose(0, 2, 1, 3)
        rotary = Rotary(dims, traditional, base, scale)
        for offset in (0, 1, 1000):
            y = rotary(x, offset)
            expected = mx.fast.rope(x, dims, traditional=traditional, base=base, scale=scale, offset=offset)
            assert y.shape == x.shape
            assert mx.allclose(y, expected, rtol=1e-4, atol=2e-4)
            assert (np.array(rotary(x[:, :, 4:5], offset + 4)) == np.array(y)[:, :, 4:5]).all()
        angle = 7 * scale * base ** (-2 / dims)
        a, b = (2, 3) if traditional else (1, 1 + dims // 2)
        row, turned = exact(x)[1, 2, 7], exact(rotary(x, 0))[1, 2, 7]
        assert math.isclose(turned[a], row[a] * math.cos(angle) - row[b] * math.sin(angle), abs_tol=1e-5)
        assert (turned[dims:] == row[dims:]).all()


def attention64(q, k, v, scale, visible, added=0.0, sinks=None):
    q, k, v = exact(q), exact(k), exact(v)
    repeat = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, repeat, 1), np.repeat(v, repeat, 1)
    scores = np.where(visible, q @ k.transpose(0, 1, 3, 2) * scale + added, -np.inf)
    if sinks is not None:
        own = np.broadcast_to(exact(sinks)[None, :, None, None], (*scores.shape[:3], 1))
        scores = np.concatenate([scores, own], -1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return weights[..., : k.shape[2]] @ v


@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("mask", ["none", "causal", "bool", "added"])
def test_attention_equals_float64_and_mlx(mask, sinks) -> None:
    dice = np.random.default_rng(3)
    for batch, heads, key_heads, queries, keys, width, value_width in (
        (1, 4, 2, 1, 33, 64, 64),
        (2, 6, 2, 7, 40, 32, 48),
        (1, 3, 1, 50, 50, 20, 20),
        (1, 8, 8, 5, 5, 128, 128),
    ):
        q = numbers(dice, batch, queries, heads, width).transpose(0, 2, 1, 3)
        k = numbers(dice, batch, key_heads, keys + 9, width)[:, :, :keys]
        v = numbers(dice, batch, key_heads, keys + 9, value_width)[:, :, :keys]
        own = numbers(dice, heads) if sinks else None
        visible = np.ones((queries, keys), bool)
        added, given = 0.0, None
        if mask == "causal":
            visible, given = np.tri(queries, keys, keys - queries, dtype=bool), "causal"
        elif mask == "bool":
            visible = dice.random((batch, 1, queries, keys)) < 0.7
            visible[..., 0] = True
            given = mx.array(visible)
        elif mask == "added":
            added = dice.normal(0, 1, (heads, queries, keys)).astype(np.float32)
            given = mx.array(added)
        options = {"scale": 0.3, "mask": given, "sinks": own}
        y = attention(q, k, v, **options)
        assert y.shape == (batch, heads, queries, value_width)
        wanted = attention64(q, k, v, 0.3, visible, added, own)
        assert np.abs(exact(y) - wanted).max() < 2e-6 * max(1, np.abs(wanted).max())
        if width == value_width:
            stock = mx.fast.scaled_dot_product_attention(q, k, v, **options)
            assert mx.allclose(y, stock, rtol=1e-4, atol=1e-5)
        for kernels, threads in itertools.product(kernel_sets(), (1, 2, 3)):
            same = attention(q, k, v, kernels=kernels, threads=threads, **options)
            assert bytes(memoryview(same)) == bytes(memoryview(y)), (kernels, threads)


def test_a_query_gives_the_same_bits_alone_as_among_others() -> None:
    dice = np.random.default_rng(4)
    q, k, v = (numbers(dice, 1, heads, 70, 32) for heads in (4, 2, 2))
    whole = np.array(attention(q, k, v, scale=0.2, mask="causal"))
    for position in (0, 1, 15, 16, 33, 69):
        seen = slice(0, position + 1)
        alone = attention(q[:, :, position : position + 1], k[:, :, seen], v[:, :, seen], scale=0.2)
        assert (np.array(alone)[:, :, 0] == whole[:, :, position]).all()
    later = attention(q[:, :, 40:], k, v, scale=0.2, mask="causal")
    assert (np.array(later) == whole[:, :, 40:]).all()
    triangle = attention(q, k, v, scale=0.2, mask=mx.array(np.tri(70, dtype=bool)))
    assert (np.array(triangle) == whole).all()


def test_keys_and_values_may_lie_anyhow_in_memory() -> None:
    dice = np.random.default_rng(5)
    q, k, v = (numbers(dice, 2, heads, 6, 16) for heads in (4, 2, 2))
    plain = np.array(attention(q, k, v, scale=1.0))

    def turned(a):
        return mx.contiguous(a.transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0)

    assert (np.array(attention(turned(q), turned(k), turned(v), scale=1.0)) == plain).all()
    wide = mx.concatenate([k, k], -1)[..., :16]
    assert (np.array(attention(q, wide, v[:, :, ::-1][:, :, ::-1], scale=1.0)) == plain).all()


def test_a_query_that_sees_nothing_gives_zeros_and_large_scores_overflow_nothing() -> None:
    q, k, v = mx.ones((1, 1, 2, 16)), mx.ones((1, 1, 3, 16)), mx.ones((1, 1, 3, 16))
    blind = attention(q, k, v, scale=1.0, mask=mx.array([[False] * 3, [True] * 3]), sinks=mx.zeros(1))
    assert (np.array(blind)[0, 0, 0] == 0).all()
    assert (np.array(attention(1e4 * q, 1e4 * k, v, scale=1.0)) == 1).all()


def test_arguments_are_checked() -> None:
    q, k = mx.ones((1, 4, 2, 16)), mx.ones((1, 2, 3, 16))
    for arguments, options, message in (
        ((q.astype(mx.bfloat16), k, k), {}, "q is bfloat16"),
        ((q, k, k[:, :, :2]), {}, "have the shapes"),
        ((q[:, :3], k, k), {}, "have the shapes"),
        ((q, k[..., :8], k), {}, "have the shapes"),
        ((q, k[:, :, :0], k[:, :, :0]), {}, "have the shapes"),
        ((q, k[:, :, :1], k[:, :, :1]), {"mask": "causal"}, "as many keys as queries"),
        ((q, k, k), {"mask": "window"}, "no mask is named window"),
        ((q, k, k), {"mask": mx.ones((2, 4))}, "does not broadcast"),
        ((q, k, k), {"mask": mx.ones((2, 3), mx.int32)}, "mask is int32"),
        ((q, k, k), {"sinks": mx.ones(3)}, "sinks has the shape"),
        ((q, k, k), {"threads": 99}, "threads is 99"),
    ):
        with pytest.raises(ValueError, match=message):
            attention(*arguments, scale=1.0, **options)
    with pytest.raises(TypeError, match="mask must be None"):
        attention(q, k, k, scale=1.0, mask=3)
    weight = mx.ones(4)
    mx.eval(weight)
    for make, message in (
        (lambda: RmsNorm(mx.ones((2, 2)), 1e-5), "weight has the shape"),
        (lambda: RmsNorm(weight.astype(mx.float16), 1e-5), "weight is float16"),
        (lambda: RmsNorm(weight * 2, 1e-5), "not evaluated"),
        (lambda: RmsNorm(weight, -1.0), "eps is -1"),
        (lambda: RmsNorm(weight, 1e-5)(mx.ones(5)), "x has the shape"),
        (lambda: Rotary(3, False, 1e4, 1.0), "dims is 3"),
        (lambda: Rotary(4, False, 0.0, 1.0), "base is 0"),
        (lambda: Rotary(4, False, 1e4, 1.0)(mx.ones((5, 2)), 0), "x has the shape"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
