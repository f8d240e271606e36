"""The CPU kernels against float64 arithmetic, against stock MLX operations, and against each other."""

import itertools
import math

import mlx.core as mx
import numpy as np
import pytest

import lme_cpu_kernels
from lme_cpu_kernels import DenseProduct, ExpertProduct, exponential, kernel_sets, reference

pytestmark = pytest.mark.usefixtures("on_the_cpu")

PACKINGS = [
    *(("affine", bits, group) for bits in (4, 8) for group in (32, 64, 128)),
    ("mxfp4", 4, 32),
    None,
]
ACTIVATIONS = {
    "swiglu": {"activation": "swiglu"},
    "swiglu with a limit": {"activation": "swiglu", "limit": 0.3},
    "swiglu_oai": {"activation": "swiglu_oai", "limit": 0.3},
    "geglu_tanh": {"activation": "geglu_tanh"},
}


def matrix(dice, slots, rows, columns, packing, dtype=mx.float32, bias=False):
    """Random weights, as they are packed: components of a projection."""
    weight = mx.array(dice.normal(0, 0.1, (slots, rows, columns)).astype(np.float32)).astype(dtype)
    parts = {"weight": weight}
    if packing is not None:
        mode, bits, group = packing
        packed = mx.quantize(weight, group, bits, mode=mode)
        parts = dict(zip(("weight", "scales", "biases"), packed, strict=False))
    if bias:
        parts["bias"] = mx.array(dice.normal(0, 0.1, (slots, rows)).astype(np.float32)).astype(dtype)
    mx.eval(parts)
    return parts


def numbers(dice, *shape):
    return mx.array(dice.normal(0, 1, shape).astype(np.float32))


def first_slot(parts):
    parts = {name: array[:1] for name, array in parts.items()}
    mx.eval(parts)
    return parts


def ids(array):
    return mx.array(np.asarray(array).astype(np.uint32))


def exact(array):
    return np.array(array.astype(mx.float32)).astype(np.float64)


def unpacked(parts, packing):
    """The weights in float64, without MLX's arithmetic."""
    if packing is None:
        return exact(parts["weight"])
    mode, bits, group = packing
    words = np.array(parts["weight"])
    digits = np.stack([words >> shift & (1 << bits) - 1 for shift in range(0, 32, bits)], -1)
    digits = digits.reshape(*words.shape[:-1], -1)
    if mode == "mxfp4":
        values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])[digits]
        return values * np.repeat(2.0 ** (np.array(parts["scales"]).astype(np.float64) - 127), group, -1)
    scales, biases = (np.repeat(exact(parts[name]), group, -1) for name in ("scales", "biases"))
    return digits * scales + biases


def product64(parts, packing, x, slots):
    """The products of x [n, k or 1, columns] with the slots [n, k]: [n, k, rows]."""
    weight = unpacked(parts, packing)[slots]
    y = np.einsum("nkrc,nkc->nkr", weight, np.broadcast_to(x, (*slots.shape, x.shape[-1])))
    if "bias" in parts:
        y = y + exact(parts["bias"])[slots]
    return y


def activate64(gate, up, activation, limit=np.inf, alpha=1.702):
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    if activation == "swiglu":
        return gate / (1 + np.exp(-gate)) * up
    if activation == "swiglu_oai":
        return (up + 1) * gate / (1 + np.exp(-alpha * gate))
    return 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))) * up


def largest_error(y, wanted):
    """The largest difference, relative to the root mean square of what is wanted."""
    return np.abs(exact(y) - wanted).max() / np.sqrt(np.mean(wanted**2))


def make_experts(dice, slots, width, hidden, packing, dtype=mx.float32, bias=False):
    shapes = ((width, hidden), (width, hidden), (hidden, width))
    return [matrix(dice, slots, *shape, packing, dtype, bias) for shape in shapes]


@pytest.mark.parametrize("kernels", kernel_sets())
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_a_dense_product_equals_float64_within_rounding(packing, dtype, kernels) -> None:
    dice = np.random.default_rng(1)
    # Widths of whole blocks, and with a rest of every length that the group size allows.
    group = 32 if packing is None else packing[2]
    for columns in (group, 3 * group, 128, 256 + group, 512, 704 // group * group):
        parts = matrix(dice, 1, 37, columns, packing, dtype, bias=True)
        x = numbers(dice, 5, columns)
        wanted = product64(parts, packing, exact(x)[:, None], np.zeros((5, 1), int))[:, 0]
        y = DenseProduct(parts, packing, kernels=kernels)(x)
        assert (y.shape, y.dtype) == ((5, 37), mx.float32)
        assert largest_error(y, wanted) < 4e-6
        if dtype == mx.float32 or packing is not None:
            assert largest_error(reference.dense_product(parts, packing, x), wanted) < 4e-6


def test_plain_floats_may_have_any_width() -> None:
    dice = np.random.default_rng(2)
    for columns, dtype in itertools.product((1, 15, 16, 17, 100), (mx.float32, mx.bfloat16)):
        parts = matrix(dice, 1, 3, columns, None, dtype)
        x = numbers(dice, 2, columns)
        wanted = exact(x) @ exact(parts["weight"])[0].T
        assert largest_error(DenseProduct(parts, None)(x), wanted) < 4e-6


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_routed_experts_equal_float64_within_rounding_and_stock_operations(packing, name) -> None:
    dice = np.random.default_rng(3)
    options = ACTIVATIONS[name]
    gate, up, down = make_experts(
        dice, 6, 256 if packing and packing[2] == 128 else 192, 384, packing, bias=True
    )
    x, slots = numbers(dice, 9, 384), dice.integers(0, 6, (9, 3))
    scores = numbers(dice, 9, 3)
    rows = exact(x)[:, None]
    hidden = activate64(product64(gate, packing, rows, slots), product64(up, packing, rows, slots), **options)
    wanted = product64(down, packing, hidden, slots)
    experts = ExpertProduct(gate, up, down, (packing,) * 3, **options)
    arguments = (x, ids(slots))
    assert largest_error(experts(*arguments), wanted) < 4e-6
    twin = reference.expert_product(gate, up, down, (packing,) * 3, *arguments, **options)
    assert largest_error(twin, wanted) < 1e-5
    summed = (wanted * exact(scores)[..., None]).sum(1)
    assert largest_error(experts(*arguments, scores), summed) < 4e-6
    twin = reference.expert_product(gate, up, down, (packing,) * 3, *arguments, scores, **options)
    assert largest_error(twin, summed) < 1e-5


def test_projections_may_be_packed_differently() -> None:
    dice = np.random.default_rng(4)
    packing = (("affine", 4, 64), ("affine", 8, 32), ("mxfp4", 4, 32))
    shapes = ((128, 192), (128, 192), (192, 128))
    parts = [matrix(dice, 4, *shape, p) for shape, p in zip(shapes, packing, strict=True)]
    x, slots = numbers(dice, 3, 192), dice.integers(0, 4, (3, 2))
    rows = exact(x)[:, None]
    gate, up = (product64(m, p, rows, slots) for m, p in zip(parts[:2], packing[:2], strict=True))
    wanted = product64(parts[2], packing[2], activate64(gate, up, "swiglu"), slots)
    y = ExpertProduct(*parts, packing, activation="swiglu")(x, ids(slots))
    assert largest_error(y, wanted) < 4e-6


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_every_instruction_set_and_thread_count_gives_the_same_bits(packing) -> None:
    dice = np.random.default_rng(5)
    parts = make_experts(dice, 5, 256, 512 + 128, packing, mx.bfloat16, bias=True)
    x, slots = numbers(dice, 11, 640), ids(dice.integers(0, 5, (11, 4)))
    for options in ACTIVATIONS.values():
        results = {}
        for kernels, threads in itertools.product(kernel_sets(), (1, 2, 5)):
            experts = ExpertProduct(*parts, (packing,) * 3, kernels=kernels, threads=threads, **options)
            assert (experts.kernels, experts.threads) == (kernels, threads)
            results[kernels, threads] = bytes(memoryview(experts(x, slots)))
        assert len(set(results.values())) == 1, [key for key in results]


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_a_row_does_not_depend_on_the_rows_beside_it_nor_on_the_slots_order(packing) -> None:
    dice = np.random.default_rng(6)
    gate, up, down = make_experts(dice, 5, 256, 256, packing)
    experts = ExpertProduct(gate, up, down, (packing,) * 3, activation="swiglu")
    x = numbers(dice, 150, 256)
    slots = dice.integers(0, 5, (150, 3))
    whole = np.array(experts(x, ids(slots)))
    for first, last in ((0, 1), (1, 3), (7, 12), (20, 149)):
        part = experts(x[first:last], ids(slots[first:last]))
        assert (np.array(part) == whole[first:last]).all()
    order = dice.permutation(5)
    moved = [{name: array[mx.array(order)] for name, array in m.items()} for m in (gate, up, down)]
    mx.eval(moved)
    elsewhere = ExpertProduct(*moved, (packing,) * 3, activation="swiglu")
    assert (np.array(elsewhere(x, ids(np.argsort(order)[slots]))) == whole).all()
    lonely = DenseProduct(first_slot(gate), packing)
    assert (np.array(lonely(x))[40:41] == np.array(lonely(x[40:41]))).all()


@pytest.mark.parametrize("kernels", kernel_sets())
@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_a_pass_may_be_filled_part_by_part_with_the_same_bits(packing, kernels) -> None:
    dice = np.random.default_rng(16)
    experts = ExpertProduct(
        *make_experts(dice, 6, 256, 256, packing, bias=True),
        (packing,) * 3,
        activation="swiglu",
        kernels=kernels,
    )
    x, slots = numbers(dice, 70, 256), dice.integers(0, 6, (70, 4))
    whole = np.array(experts(x, ids(slots))).reshape(280, 256)
    for parts in (1, 2, 7):
        y = mx.full((280, 256), -5.0)
        done = np.zeros(280, bool)
        for routes in np.array_split(dice.permutation(280), parts):
            y = experts.fill(y, x, ids(routes), ids(slots.reshape(-1)[routes]))
            mx.eval(y)
            done[routes] = True
            assert (np.array(y)[done] == whole[done]).all()
            assert (np.array(y)[~done] == -5.0).all()


def test_filling_takes_memory_over_from_nobody_who_still_looks_at_it() -> None:
    dice = np.random.default_rng(17)
    packing = ("affine", 4, 64)
    experts = ExpertProduct(*make_experts(dice, 3, 64, 64, packing), (packing,) * 3, activation="swiglu")
    x, routes, slots = numbers(dice, 8, 64), ids(range(0, 16, 2)), ids([0, 1, 2, 0, 1, 2, 0, 1])
    out = mx.zeros((16, 64))
    mx.eval(out)
    strided = mx.zeros((64, 16)).T
    for target in (out, strided, out[:]):
        y = experts.fill(target, x, routes, slots)
        mx.eval(y)
        assert not target.any()
        assert y[::2].any() and not y[1::2].any()
    # Nobody else refers to it: a chain of parts stays in one place.
    out = mx.zeros((16, 64)) + 0
    mx.eval(out)
    place = np.array(out, copy=False).ctypes.data
    for _ in range(3):
        out = experts.fill(out, x, routes, slots)
        mx.eval(out)
    assert np.array(out, copy=False).ctypes.data == place
    nothing = experts.fill(out, x, routes[:0], slots[:0])
    assert mx.array_equal(nothing, y)


def test_filling_refuses_what_does_not_fit() -> None:
    dice = np.random.default_rng(18)
    packing = ("affine", 4, 64)
    experts = ExpertProduct(*make_experts(dice, 3, 64, 128, packing), (packing,) * 3, activation="swiglu")
    out, x, routes = mx.zeros((6, 128)), numbers(dice, 3, 128), ids([1, 4])
    for wrong in (
        (out[:5], x, routes, routes),
        (out[:, :64], x, routes, routes),
        (out[0], x, routes, routes),
        (out.astype(mx.bfloat16), x, routes, routes),
        (out, x[None], routes, routes),
        (out, x[:0], routes, routes),
        (out, x[:, :64], routes, routes),
        (out, x, routes[None], routes[None]),
        (out, x, routes, routes[:1]),
        (out, x, routes.astype(mx.float32), routes),
        (out, x, routes, routes.astype(mx.int16)),
    ):
        with pytest.raises(ValueError, match="shape|is mlx|is bfloat16|is float32|is int16|not"):
            experts.fill(*wrong)
    for bad_routes, bad_slots, message in (
        ([1, 6], [0, 0], r"routes\[1\] is 6"),
        ([1, 1], [0, 0], r"routes\[1\] is 1, twice"),
        ([1, 2], [0, 3], r"slots\[1\] is 3, and there are 3 slots"),
    ):
        with pytest.raises(RuntimeError, match=message):
            mx.eval(experts.fill(mx.zeros((6, 128)), x, ids(bad_routes), ids(bad_slots)))


def test_more_routes_than_fit_into_one_wave_give_the_same_bits() -> None:
    dice = np.random.default_rng(7)
    packing = ("affine", 4, 64)
    experts = ExpertProduct(*make_experts(dice, 3, 2048, 64, packing), (packing,) * 3, activation="swiglu")
    x, slots = numbers(dice, 700, 64), dice.integers(0, 3, (700, 2))
    whole = np.array(experts(x, ids(slots)))
    for row in (0, 350, 699):
        assert (np.array(experts(x[row : row + 1], ids(slots[row : row + 1])))[0] == whole[row]).all()


def test_the_exponential_is_within_one_ulp_over_its_whole_range() -> None:
    dice = np.random.default_rng(8)
    x = np.concatenate(
        [np.linspace(-87, 88, 40_000), dice.normal(0, 1e-3, 10_000), dice.uniform(-1, 1, 50_000), [0.0, -0.0]]
    ).astype(np.float32)
    wanted = np.exp(x.astype(np.float64))
    for kernels in kernel_sets():
        y = np.array(exponential(x.tolist(), kernels)).astype(np.float64)
        ulp = np.spacing(wanted.astype(np.float32)).astype(np.float64)
        assert (np.abs(y - wanted) / ulp).max() < 1.0
        assert exponential([0.0, -1000.0, 1000.0], kernels)[0] == 1.0


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_large_and_strange_activations_are_what_float32_makes_of_them(name) -> None:
    options = ACTIVATIONS[name]
    values = [0.0, -0.0, 1e-30, -1e-30, 20.0, -20.0, 100.0, -100.0, 1e4, -1e4]
    one = {"weight": mx.ones((1, 1, 1))}
    mx.eval(one)
    experts = ExpertProduct(one, one, one, (None,) * 3, **options)
    x = mx.array([[v] for v in values])
    y = exact(experts(x, mx.zeros((len(values), 1), mx.uint32)))[:, 0, 0]
    gate = np.array(values)
    with np.errstate(over="ignore"):
        wanted = activate64(gate, gate, **options)
    assert np.allclose(y, wanted, rtol=2e-6, atol=1e-30)
    for strange in (math.nan, math.inf):
        got = experts(mx.array([[strange]]), mx.zeros((1, 1), mx.uint32)).item()
        assert math.isnan(got) or got == math.inf or "limit" in options


def test_arrays_of_any_strides_and_ranks_are_taken() -> None:
    dice = np.random.default_rng(9)
    packing = ("affine", 4, 32)
    parts = make_experts(dice, 4, 64, 64, packing)
    experts = ExpertProduct(*parts, (packing,) * 3, activation="swiglu")
    x, slots, scores = numbers(dice, 6, 64), ids(dice.integers(0, 4, (6, 4))), numbers(dice, 6, 4)
    plain = np.array(experts(x, slots))
    turned = mx.contiguous(x.T).T
    wide = mx.contiguous(mx.concatenate([slots, slots], -1))[:, 4:]
    assert (np.array(experts(turned, wide.astype(mx.int32))) == plain).all()
    backwards = experts(x[::-1], slots[::-1])
    assert (np.array(backwards)[::-1] == plain).all()
    deep = experts(x.reshape(2, 3, 64), slots.reshape(2, 3, 4), scores.reshape(2, 3, 4))
    assert deep.shape == (2, 3, 64)
    assert (np.array(deep).reshape(6, 64) == np.array(experts(x, slots, scores))).all()
    single = experts(mx.broadcast_to(x[:1], (6, 64)), slots[:, :1])
    assert (np.array(single) == np.array(experts(mx.tile(x[:1], (6, 1)), slots[:, :1]))).all()
    one_row = experts(x[0], slots[0])
    assert (np.array(one_row) == plain[0]).all()
    assert experts(x[:0], slots[:0]).shape == (0, 4, 64)
    dense = DenseProduct(first_slot(parts[0]), packing)
    assert (np.array(dense(x.reshape(3, 1, 2, 64))).reshape(6, 64) == np.array(dense(turned))).all()
    assert mx.eval(dense(x[:0])) is None


def test_products_are_lazy_and_take_part_in_graphs() -> None:
    dice = np.random.default_rng(10)
    dense = DenseProduct(matrix(dice, 1, 32, 32, ("affine", 4, 32)), ("affine", 4, 32))
    x = numbers(dice, 2, 32)
    y = x
    for _ in range(50):
        y = mx.tanh(dense(y) + x)
    plain = x
    for _ in range(50):
        step = dense(plain)
        mx.eval(step)
        plain = mx.tanh(step + x)
    assert (np.array(y) == np.array(plain)).all()
    del dense  # the graph holds the weights
    mx.eval(y * 2)


@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1])
def test_a_slot_that_does_not_exist_is_an_error_and_not_a_read(bad) -> None:
    dice = np.random.default_rng(11)
    packing = ("affine", 4, 32)
    experts = ExpertProduct(*make_experts(dice, 4, 32, 32, packing), (packing,) * 3, activation="swiglu")
    assert experts.slots == 4
    x = numbers(dice, 2, 32)
    with pytest.raises(RuntimeError, match=rf"slots\[1, 0\] is {bad}, and there are 4 slots"):
        mx.eval(experts(x, mx.array([[0, 1], [bad, 0]], mx.int32)))
    good = experts(x, ids([[0, 1], [3, 0]]))
    assert np.isfinite(np.array(good)).all()


def affine(**changes):
    parts = {
        "weight": mx.zeros((2, 8, 8), mx.uint32),
        "scales": mx.zeros((2, 8, 1)),
        "biases": mx.zeros((2, 8, 1)),
    } | changes
    parts = {name: array for name, array in parts.items() if array is not None}
    mx.eval([array for array in parts.values() if isinstance(array, mx.array)])
    return parts


@pytest.mark.parametrize(
    ("parts", "packing", "message"),
    [
        (affine(weight=None), ("affine", 4, 64), "gate.weight is missing"),
        (affine(scales=None), ("affine", 4, 64), "gate.scales is missing"),
        (affine(biases=None), ("affine", 4, 64), "gate.biases is missing"),
        (affine(zeros=mx.zeros(1)), ("affine", 4, 64), "gate.zeros is no component"),
        (affine(), ("affine", 2, 64), "affine, 2 bits, groups of 64"),
        (affine(), ("affine", 4, 16), "affine, 4 bits, groups of 16"),
        (affine(), ("nvfp4", 4, 16), "mode nvfp4"),
        (affine(), ("mxfp4", 4, 32), "gate.scales has the shape"),
        (affine(), ("affine", 4, 128), "not a multiple of the group size 128"),
        (affine(), None, "has scales or biases, but no mode"),
        (affine(weight=mx.zeros((2, 8, 8))), ("affine", 4, 64), "gate.weight is float32, not uint32"),
        (affine(weight=mx.zeros((8, 8), mx.uint32)), ("affine", 4, 64), "gate.weight has the shape"),
        (affine(scales=mx.zeros((2, 8, 2))), ("affine", 4, 64), "gate.scales has the shape"),
        (affine(scales=mx.zeros((2, 8, 1), mx.float16)), ("affine", 4, 64), "gate.scales is float16"),
        (affine(biases=mx.zeros((2, 8, 1), mx.bfloat16)), ("affine", 4, 64), "and .scales is float32"),
        (affine(bias=mx.zeros((2, 9))), ("affine", 4, 64), "gate.bias has the shape"),
        (affine(weight=mx.zeros((2, 8, 16), mx.uint32)[:, :, ::2]), ("affine", 4, 64), "not row-contiguous"),
        (affine() | {"weight": mx.zeros((2, 8, 8), mx.uint32) + 1}, ("affine", 4, 64), "is not evaluated"),
        ({"weight": mx.zeros((2, 8, 8), mx.float16)}, None, "is float16 ?:"),
        (affine(), ("affine", 4), "must be .mode, bits, group size."),
    ],
    ids=range(20),
)
def test_weights_that_cannot_be_taken_are_named(parts, packing, message) -> None:
    good = {"weight": mx.zeros((2, 64, 8))}
    mx.eval(good)
    with pytest.raises(ValueError, match=message):
        ExpertProduct(parts, parts, good, (packing, packing, None), activation="swiglu")


def test_matrices_that_do_not_fit_together_are_refused() -> None:
    plain = {
        name: {"weight": mx.zeros(shape)}
        for name, shape in {"a": (2, 8, 4), "b": (2, 9, 4), "c": (2, 4, 8), "d": (3, 8, 4)}.items()
    }
    mx.eval(plain)
    a, b, c, d = plain.values()
    for parts, message in (
        ((a, d, c), "2, 3 and 2 slots"),
        ((a, b, c), "gate is 8 × 4 and up 9 × 4"),
        ((a, a, a), "down takes 4 columns, but gate and up have 8 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            ExpertProduct(*parts, (None,) * 3, activation="swiglu")
    with pytest.raises(ValueError, match="2 slots: a dense product has one"):
        DenseProduct(a, None)
    with pytest.raises(TypeError, match="weight.weight must be an mlx.core.array"):
        DenseProduct({"weight": 1}, None)


def test_options_and_arguments_are_checked() -> None:
    a, c = {"weight": mx.zeros((2, 8, 4))}, {"weight": mx.zeros((2, 4, 8))}
    mx.eval(a, c)

    def make(**options):
        return ExpertProduct(a, a, c, (None,) * 3, **({"activation": "swiglu"} | options))

    for options, message in (
        ({"activation": "relu"}, "no activation is named relu"),
        ({"alpha": 2.0}, "only swiglu_oai has an alpha"),
        ({"limit": 0.0}, "limit must be above 0"),
        ({"threads": 65}, "threads is 65"),
        ({"threads": -1}, "threads is -1"),
        ({"kernels": "sse9"}, "no kernels named sse9"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**options)
    experts = make()
    x, slots = mx.zeros((3, 4)), mx.zeros((3, 2), mx.uint32)
    for arguments, message in (
        ((x.astype(mx.bfloat16), slots), "x is bfloat16, not float32"),
        ((x[:, :3], slots), "x has the shape"),
        ((x, slots.astype(mx.int64)), "slots is int64"),
        ((x, slots[:2]), "slots has the shape"),
        ((x, slots, mx.zeros((3, 1))), "scores has the shape"),
        ((x, slots, mx.zeros((3, 2), mx.float16)), "scores is float16"),
    ):
        with pytest.raises(ValueError, match=message):
            experts(*arguments)


def test_the_bytes_of_a_slot_are_those_of_its_weights_and_scales() -> None:
    dice = np.random.default_rng(12)
    packing = ("affine", 4, 64)
    parts = make_experts(dice, 3, 64, 128, packing, mx.bfloat16)
    nbytes = sum(array.nbytes for m in parts for array in m.values())
    assert ExpertProduct(*parts, (packing,) * 3, activation="swiglu").bytes_per_slot * 3 == nbytes


def test_the_build_is_described() -> None:
    info = lme_cpu_kernels.build_info()
    assert set(info) == {"version", "compiler", "mlx", "kernels", "threads"}
    assert info["kernels"] == kernel_sets()[0]
    assert kernel_sets()[-1] == "scalar"
    assert int(info["threads"]) >= 1
