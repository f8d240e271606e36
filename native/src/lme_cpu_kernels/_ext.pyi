from collections.abc import Mapping, Sequence

import mlx.core as mx

Packing = tuple[str, int, int] | None
"""(mode, bits, group size) as in `mx.quantize`, or None for plain floats."""

class DenseProduct:
    """x · Wᵀ (+ bias) with a packed weight matrix.

    `components` holds "weight" [1, rows, …] and, packed, "scales" and "biases" [1, rows, groups]; optionally
    "bias" [1, rows]. Weights are what `mx.quantize` gives: affine with 4 or 8 bits and groups of 32, 64 or
    128, mxfp4, or plain float32 or bfloat16. Scales, biases and bias may be float32 or bfloat16.

    The arrays are held, evaluated and row-contiguous, as long as the product lives; the graph does not know
    of them. Never write to them while a graph that this product is part of is not finished.

    `threads` 0 means one for each CPU that the process may use. `kernels` names one of `kernel_sets()`; the
    default is the fastest. Neither changes a bit of the result, nor does the number of rows of `x`.

    Raises:
        TypeError: a component is no array.
        ValueError: a component is missing or unknown, or has a dtype, shape or memory layout that is not
            taken; the packing is none of the above; `threads` is not 0 to 64.
    """

    def __init__(
        self,
        components: Mapping[str, mx.array],
        packing: Packing,
        *,
        threads: int = 0,
        kernels: str = "",
    ) -> None: ...
    def __call__(self, x: mx.array) -> mx.array:
        """[..., columns] float32 → [..., rows] float32, lazily, on the CPU's default stream.

        Raises:
            ValueError: `x` has another dtype or width.
        """

    @property
    def threads(self) -> int:
        """Threads that large products are shared by."""

    @property
    def kernels(self) -> str:
        """The instruction set in use."""

class ExpertProduct:
    """A layer's routed experts: down(activation(gate(x), up(x))) for every route.

    `gate`, `up` and `down` are components as in `DenseProduct`, with a slot per expert: [slots, rows, …].
    `packing` has one entry for each of the three. What `DenseProduct` says of arrays, threads and kernels
    holds here too.

    Activations: "swiglu", silu(gate) · up; "swiglu_oai", (up + 1) · gate · σ(alpha · gate), alpha 1.702 if
    not given; "geglu_tanh", gelu(gate) · up with the tanh approximation. With a `limit` gate is first cut off
    above it and up outside ± it.

    Raises:
        TypeError, ValueError: as `DenseProduct`; the three matrices do not fit together; no such activation.
    """

    def __init__(
        self,
        gate: Mapping[str, mx.array],
        up: Mapping[str, mx.array],
        down: Mapping[str, mx.array],
        packing: tuple[Packing, Packing, Packing],
        *,
        activation: str,
        alpha: float | None = None,
        limit: float | None = None,
        threads: int = 0,
        kernels: str = "",
    ) -> None: ...
    def __call__(self, x: mx.array, slots: mx.array, scores: mx.array | None = None) -> mx.array:
        """The experts' results: x [..., hidden] float32, slots [..., k] → [..., k, hidden] float32, lazily.

        With `scores` [..., k] float32 the k results of a row are added up, weighted: [..., hidden].

        Raises:
            ValueError: a dtype or shape is not as described.
            RuntimeError: at evaluation; a slot id is not below `slots`. Nothing is read then.
        """

    def fill(self, out: mx.array, x: mx.array, routes: mx.array, slots: mx.array) -> mx.array:
        """`out` with some of a pass's results in their places: a pass may be computed part by part.

        x [tokens, hidden] float32; out [tokens * k, rows] float32; routes [r] are rows of `out`, distinct, in
        any order, of which row i belongs to token i // k; slots [r] are their experts. The rest of `out`
        stays. The bits are those of `__call__`. The memory of `out` is taken over where nothing else refers
        to it, and copied otherwise.

        Raises:
            ValueError: a dtype or shape is not as described.
            RuntimeError: at evaluation; a route is not below tokens * k or comes twice, or a slot id is not
                below `slots`. Nothing is read then.
        """

    @property
    def slots(self) -> int:
        """Experts that there is room for."""

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of weights that one route reads."""

    @property
    def threads(self) -> int:
        """Threads that large products are shared by."""

    @property
    def kernels(self) -> str:
        """The instruction set in use."""

def exponential(values: Sequence[float], kernels: str) -> list[float]:
    """e^x as the activations compute it, within 1 ulp; arguments are cut off at -87 and 88. For tests."""

def kernel_sets() -> list[str]:
    """Instruction sets that this CPU has kernels for, fastest first; "scalar" is always the last."""

def build_info() -> dict[str, str]:
    """How the extension was built and what it uses.

    Keys: "version", "compiler", "mlx" (the version built against), "kernels", "threads".
    """

class RmsNorm:
    """x / sqrt(mean(x²) + eps) · weight over the last extent, as `mx.fast.rms_norm`.

    `weight` [width] is float32, evaluated, or None for 1. See `DenseProduct` for the rest.

    Raises:
        ValueError: `weight` has another dtype or shape; `eps` is negative.
    """

    def __init__(
        self, weight: mx.array | None, eps: float, *, threads: int = 0, kernels: str = ""
    ) -> None: ...
    def __call__(self, x: mx.array) -> mx.array:
        """[..., width] float32 → the same shape, lazily.

        Raises:
            ValueError: `x` has another dtype or width.
        """

class Rotary:
    """Rotary position embedding (Su et al., arXiv:2104.09864) of the first `dims` elements of each row.

    As `mx.fast.rope` without `freqs`: pair i turns by position · `scale` · `base` ** (-2i / `dims`). Pairs
    are elements i and i + dims / 2, or with `traditional` 2i and 2i + 1.

    Raises:
        ValueError: `dims` is odd or below 2; `base` is not above 0.
    """

    def __init__(
        self, dims: int, traditional: bool, base: float, scale: float, *, threads: int = 0
    ) -> None: ...
    def __call__(self, x: mx.array, offset: int) -> mx.array:
        """[..., length, width] float32 → the same shape; the first row is at position `offset`.

        Raises:
            ValueError: `x` has another dtype, or rows shorter than `dims`.
        """

def attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None = None,
    sinks: mx.array | None = None,
    threads: int = 0,
    kernels: str = "",
) -> mx.array:
    """softmax(scale · q · kᵀ + mask) · v, as `mx.fast.scaled_dot_product_attention`, lazily.

    q [batch, heads, queries, width], k and v [batch, key heads, keys, …], float32; heads are a multiple of
    key heads. `mask` is "causal" (the last query sees every key), or an array that broadcasts to [batch,
    heads, queries, keys]: bool, or float32 that is added. `sinks` [heads] are scores without a value. A query
    that sees nothing gives zeros. Keys that are hidden change no bit of a result.

    Raises:
        TypeError: `mask` is none of these.
        ValueError: a dtype or shape is not as described.
    """
