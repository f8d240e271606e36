"""Pieces of DeepSeek-V4's model on their own: choice of entries, angles, mixing, packed projections."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mach.io.deepseek_v4_rope import Rope
from mach_store.deepseek_v4 import Model, ModelArgs
from mach_store.deepseek_v4.attention import attend, grouped
from mach_store.deepseek_v4.hyper_connections import sinkhorn
from mach_store.deepseek_v4.indexer import highest
from mach_store.deepseek_v4.rope import RotaryAngles, frequencies, turn
from mach_store.deepseek_v4.routing import ClampedSwiGLU


def test_the_highest_scores_are_taken_and_of_equal_ones_the_first() -> None:
    random = np.random.default_rng(2)
    for m in (5, 17, 300):
        scores = random.standard_normal((40, m)).astype(np.float32).round(1)  # ties everywhere
        scores[random.random((40, m)) < 0.3] = -np.inf
        scores[0], scores[1, ::2] = 0.0, -0.0
        for k in (1, 3, m):
            expected = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :k], axis=1)
            assert np.array_equal(np.array(highest(mx.array(scores), k)), expected)


def test_entries_that_are_added_behind_do_not_change_the_choice_among_equal_ones() -> None:
    scores = np.zeros((1, 50), np.float32)
    for behind in range(0, 200, 7):
        more = np.concatenate([scores, np.full((1, behind), -np.inf, np.float32)], axis=1)
        assert np.array(highest(mx.array(more), 6)).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_angles_are_exact_at_positions_of_a_long_context() -> None:
    angles = RotaryAngles(Rope(10000.0), 8)
    turns = np.array(angles.at(1_000_000, 3, 4))
    wavelength = frequencies(Rope(10000.0), 8)
    for row, position in zip(turns, (1_000_000, 1_000_004, 1_000_008), strict=True):
        exact = [np.exp(1j * float(np.float32(position) * f)) for f in wavelength]
        assert np.abs(row - exact).max() < 1e-6


def test_the_angles_of_the_last_positions_are_made_once() -> None:
    angles = RotaryAngles(Rope(10000.0), 8)
    first = angles.at(5, 2)
    assert angles.at(0, 1, 4) is angles.at(0, 1, 4)
    assert angles.at(5, 2) is first
    assert angles.at(6, 2) is not first


def test_yarn_keeps_fast_frequencies_and_divides_slow_ones() -> None:
    plain = frequencies(Rope(160000.0), 64)
    yarn = frequencies(Rope(160000.0, factor=16.0, original_context=65536), 64)
    assert np.array_equal(yarn[:10], plain[:10])
    assert np.allclose(yarn[-4:], plain[-4:] / 16, rtol=1e-6)
    assert (np.diff(yarn / plain) <= 1e-6).all()


@pytest.mark.parametrize("dim", [8, 12])
def test_turning_is_of_neighbours_at_the_end_and_can_be_undone(dim) -> None:
    x = mx.array(np.random.default_rng(3).standard_normal((5, 2, dim)).astype(np.float32))
    turns = RotaryAngles(Rope(100.0), 8).at(3, 5)[:, None]
    turned = turn(x, turns)
    assert np.array_equal(np.array(turned[..., : dim - 8]), np.array(x[..., : dim - 8]))
    a, b = (float(x[2, 1, dim - 8 + i].item()) for i in (0, 1))
    expected = (a * math.cos(5) - b * math.sin(5), a * math.sin(5) + b * math.cos(5))
    assert np.allclose(np.array(turned[2, 1, dim - 8 : dim - 6]), expected, atol=1e-6)
    assert np.allclose(np.array(turn(turned, mx.conjugate(turns))), np.array(x), atol=1e-6)


def test_sinkhorn_ends_doubly_stochastic_and_nineteen_iterations_are_not_twenty() -> None:
    matrix = mx.softmax(4 * mx.array(np.random.default_rng(1).standard_normal((3, 4, 4))), axis=-1) + 1e-6
    done = np.array(sinkhorn(matrix.astype(mx.float32), 20, 1e-6))
    assert np.allclose(done.sum(1), 1, atol=1e-5)
    assert np.allclose(done.sum(2), 1, atol=0.05)
    assert np.abs(done - np.array(sinkhorn(matrix.astype(mx.float32), 19, 1e-6))).max() > 1e-4


def test_the_activation_bounds_gate_above_and_up_on_both_sides() -> None:
    up, gate = mx.array([-9.0, 9.0, 0.5, 1.0]), mx.array([9.0, 9.0, -9.0, 0.5])
    silu = [
        2 / (1 + math.exp(-2)),
        2 / (1 + math.exp(-2)),
        -9 / (1 + math.exp(9)),
        0.5 / (1 + math.exp(-0.5)),
    ]
    expected = [-2 * silu[0], 2 * silu[1], 0.5 * silu[2], silu[3]]
    assert np.allclose(np.array(ClampedSwiGLU(2.0)(up, gate)), expected, atol=1e-6)


def test_a_sink_takes_weight_and_gives_nothing() -> None:
    q, keys = mx.zeros((1, 2, 4)), mx.ones((3, 4))
    out = np.array(attend(q, keys, None, mx.array([0.0, -mx.inf])))
    assert np.allclose(out[0, 0], 0.75)
    assert np.allclose(out[0, 1], 1.0)
    seen = np.array(attend(q, keys, mx.array([[True, False, False]]), mx.array([0.0, -mx.inf])))
    assert np.allclose(seen[0, 0], 0.5)


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "plain"])
def test_the_grouped_projection_multiplies_each_group_by_its_own_rows(mode) -> None:
    linear = nn.Linear(64, 3 * 5, bias=False)
    packed = linear
    if mode == "affine":
        packed = linear.to_quantized(group_size=32, bits=4)
        whole = mx.dequantize(packed.weight, packed.scales, packed.biases, 32, 4)
    elif mode == "mxfp4":
        packed = linear.to_quantized(group_size=32, bits=4, mode="mxfp4")
        whole = mx.dequantize(packed.weight, packed.scales, group_size=32, bits=4, mode="mxfp4")
    else:
        whole = linear.weight
    x = mx.random.normal((7, 3, 64))
    rows = np.array(whole.astype(mx.float32)).reshape(3, 5, 64)
    expected = np.einsum("ngi,goi->ngo", np.array(x), rows).reshape(7, 15)
    assert np.allclose(np.array(grouped(packed, x)), expected, atol=1e-4)


def test_a_quantised_model_is_the_model_of_its_dequantised_weights(config) -> None:
    fields = config("deepseek_v4", "none")
    mx.random.seed(1)
    packed, plain = (Model(ModelArgs.from_dict(fields)) for _ in range(2))
    nn.quantize(packed, group_size=32, bits=8)
    for path, module in packed.named_modules():
        if "scales" in module and "switch" not in path:
            target = plain
            for part in path.split("."):
                target = target[int(part)] if isinstance(target, list) else target[part]
            target.weight = mx.dequantize(module.weight, module.scales, module.biases, 32, 8)
    unpacked = dict(nn.utils.tree_flatten(packed.parameters()))
    rest = [
        (name, unpacked[name])
        for name, value in nn.utils.tree_flatten(plain.parameters())
        if name in unpacked and unpacked[name].shape == value.shape and "switch" not in name
    ]
    plain.load_weights(rest, strict=False)
    for layer, other in zip(packed.layers, plain.layers, strict=True):
        layer.mlp.switch_mlp = other.mlp.switch_mlp
    assert isinstance(packed.layers[1].self_attn.o_a_proj, nn.QuantizedLinear)
    tokens = mx.array([[5, 9, 60, 3, 17, 80, 41, 2, 11]])
    expected = np.array(plain(tokens))
    assert np.abs(np.array(packed(tokens)) - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_packed_embedding_does_not_make_the_cpu_compute_in_bfloat16(config) -> None:
    model = Model(ModelArgs.from_dict(config("deepseek_v4", "none")))
    nn.quantize(model, group_size=32, bits=4, mode="mxfp4")
    assert model.model.embed_tokens(mx.array([1])).dtype == mx.bfloat16
    assert model(mx.array([[1, 2]])).dtype == mx.float32


def test_float32_parameters_do_not_widen_bfloat16_activations(config, monkeypatch) -> None:
    monkeypatch.setattr("mach_store.deepseek_v4.model.compute_dtype", lambda: mx.bfloat16)  # as on a GPU
    model = Model(ModelArgs.from_dict(config("deepseek_v4", "none")))
    narrow = ("_proj.weight", "embed_tokens.weight", "lm_head.weight", "gate.weight")
    model.apply_to_modules(
        lambda path, module: module.update(
            {
                name: value.astype(mx.bfloat16)
                for name, value in module.items()
                if isinstance(value, mx.array) and f"{path}.{name}".endswith(narrow)
            }
        )
    )
    for layer in model.layers:
        layer.mlp.switch_mlp = _NoExperts()  # the CPU has no bfloat16 product of gathered experts
    assert model.layers[1].self_attn.kv_norm.weight.dtype == mx.float32
    cache = model.make_cache()
    for count in (130, 1):
        assert model(mx.zeros((1, count), mx.int32), cache=cache).dtype == mx.bfloat16
    for layer in cache:
        for group in layer.groups:
            assert group.entries.array.dtype == mx.bfloat16
        assert layer.window.dtype == mx.bfloat16


class _NoExperts(nn.Module):
    def __call__(self, x, indices) -> mx.array:
        return mx.zeros((*indices.shape, x.shape[-1]), x.dtype)
