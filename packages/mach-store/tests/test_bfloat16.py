import mlx.core as mx
import numpy as np

from mach_store.sidecar.bfloat16 import round_to_bfloat16, widen_bfloat16


def test_rounding_is_mlxs() -> None:
    bits = np.random.default_rng(1).integers(0, 1 << 32, 100_000, np.uint32)
    ties = (bits[:1000] & 0xFFFF0000) | 0x8000
    values = np.concatenate([bits, ties]).view(np.float32)
    values = values[np.isfinite(values)]
    expected = np.array(mx.array(values).astype(mx.bfloat16).view(mx.uint16))
    assert np.array_equal(round_to_bfloat16(values.copy()), expected)


def test_widening_and_rounding_give_every_pattern_back() -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    finite = patterns[(patterns & 0x7F80) != 0x7F80].reshape(-1, 2)
    assert np.array_equal(round_to_bfloat16(widen_bfloat16(finite)), finite)
