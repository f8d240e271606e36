import mlx.core as mx
import mlx.nn as nn
import pytest

from mach.io.sidecar_layout import PROJECTIONS, Quantization
from mach_store.expert_kernel import SORT_FROM_ROUTES, apply_experts, apply_sorted

EXPERTS, HIDDEN, WIDTH = 5, 32, 64


def swiglu(up: mx.array, gate: mx.array) -> mx.array:
    return nn.silu(gate) * up


@pytest.fixture(params=["plain", "packed"])
def experts(request):
    """Components, packing and the dense weights they stand for; every projection has a bias."""
    q = Quantization(mode="affine", bits=4, group_size=32) if request.param == "packed" else None
    components, dense = {}, {}
    for i, projection in enumerate(PROJECTIONS):
        rows, columns = (HIDDEN, WIDTH) if projection == "down_proj" else (WIDTH, HIDDEN)
        weight = mx.random.normal((EXPERTS, rows, columns), key=mx.random.key(i)) * 0.1
        parts = {"bias": mx.random.normal((EXPERTS, rows), key=mx.random.key(10 + i))}
        if q is None:
            parts["weight"] = weight
        else:
            packed = mx.quantize(weight, q.group_size, q.bits)
            parts |= dict(zip(("weight", "scales", "biases"), packed, strict=True))
            weight = mx.dequantize(*packed, q.group_size, q.bits)
        components[projection], dense[projection] = parts, weight
    return components, dict.fromkeys(PROJECTIONS, q), dense


def plainly(components, dense, x: mx.array, expert: int) -> mx.array:
    def linear(projection: str, row: mx.array) -> mx.array:
        return row @ dense[projection][expert].T + components[projection]["bias"][expert]

    return linear("down_proj", swiglu(linear("up_proj", x), linear("gate_proj", x)))


@pytest.mark.parametrize("tokens", [1, 3, SORT_FROM_ROUTES])
def test_each_route_is_its_experts_output(experts, tokens) -> None:
    components, packing, dense = experts
    x = mx.random.normal((1, tokens, HIDDEN), key=mx.random.key(20))
    slots = mx.random.randint(0, EXPERTS, (1, tokens, 2), key=mx.random.key(21)).astype(mx.uint32)
    y = apply_experts(components, packing, swiglu, x, slots)
    assert y.shape == (1, tokens, 2, HIDDEN)
    for token in range(0, tokens, 7):
        for route in range(2):
            expected = plainly(components, dense, x[0, token], int(slots[0, token, route].item()))
            assert mx.allclose(y[0, token, route], expected, atol=1e-4)


def test_sorted_rows_give_the_same_as_unsorted_ones(experts) -> None:
    components, packing, _ = experts
    x = mx.random.normal((1, 6, HIDDEN), key=mx.random.key(22))
    slots = mx.array([0, 0, 1, 3, 4, 4], mx.uint32)
    unsorted = apply_experts(components, packing, swiglu, x, slots.reshape(1, 6, 1))
    in_order = apply_sorted(components, packing, swiglu, x[0], slots, len(slots))
    assert mx.array_equal(in_order, unsorted[0, :, 0])


def test_a_part_of_a_pass_uses_its_order_only_where_the_whole_pass_would(experts, monkeypatch) -> None:
    components, packing, _ = experts
    name = "gather_mm" if packing["up_proj"] is None else "gather_qmm"
    product, told = getattr(mx, name), []

    def recorded(*arrays, sorted_indices: bool, **options):
        told.append(sorted_indices)
        return product(*arrays, sorted_indices=sorted_indices, **options)

    monkeypatch.setattr(mx, name, recorded)
    slots = mx.array([0, 0, 1, 3], mx.uint32)
    for routes in (4, SORT_FROM_ROUTES - 1, SORT_FROM_ROUTES):
        apply_sorted(components, packing, swiglu, mx.zeros((4, HIDDEN)), slots, routes)
        tokens = mx.zeros((1, routes, 1), mx.uint32)
        apply_experts(components, packing, swiglu, mx.zeros((1, routes, HIDDEN)), tokens)
    assert told == 12 * [False] + 6 * [True]
