"""Owns the values of golden checkpoints, and the writing of one as a published Hugging Face directory.

Values come from a hash of the tensor's name and shape alone, so that every machine and every version of every
library makes the same bytes; numpy only shapes them. Neither torch nor MLX is imported: the reference's
script and the engine's tests both write their checkpoints here, and the manifest's digests say that they are
the same.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from golden_cases import GoldenCase
from golden_tensors import GoldenTensor, tensors_of

Array = np.ndarray
WEIGHTS = "model.safetensors"


def write_golden_checkpoint(case: GoldenCase, directory: Path) -> str:
    """Write config.json and the weights into `directory`; the SHA-256 of both, which names the content."""
    directory.mkdir(parents=True, exist_ok=True)
    config = json.dumps(case.config, indent=1, sort_keys=True).encode() + b"\n"
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    at = 0
    for tensor in tensors_of(case):
        dtype = tensor.dtype or case.storage
        data = stored(values_of(case, tensor), dtype)
        header[tensor.name] = {
            "dtype": dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + len(data)],
        }
        parts.append(data)
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    weights = b"".join((struct.pack("<Q", len(text)), text, *parts))
    (directory / "config.json").write_bytes(config)
    (directory / WEIGHTS).write_bytes(weights)
    return hashlib.sha256(config + weights).hexdigest()


def values_of(case: GoldenCase, tensor: GoldenTensor) -> Array:
    """The tensor's values: float32, or integers for the kinds that are."""
    # The case's name is left out: two cases with one tensor differ by what is to be tested alone.
    seed = f"{case.family}/{tensor.name}/{tensor.shape}".encode()
    return KINDS[tensor.kind](seed, tensor)


def stored(values: Array, dtype: str) -> bytes:
    """Little-endian bytes of a safetensors dtype; bfloat16 is rounded to nearest even."""
    if dtype == "BF16":
        bits = values.astype("<f4").view("<u4").astype(np.uint64)
        bits += 0x7FFF + (bits >> 16 & 1)
        return (bits >> 16).astype("<u2").tobytes()
    return values.astype({"F32": "<f4", "I64": "<i8", "U8": "u1"}[dtype]).tobytes()


def _units(seed: bytes, tensor: GoldenTensor) -> Array:
    """Uniform in (-1, 1), symmetric, 65536 different values; variance 1/3."""
    count = int(np.prod(tensor.shape))
    raw = np.frombuffer(hashlib.shake_128(seed).digest(2 * count), "<u2")
    return ((raw.astype(np.float64) - 32767.5) / 32768).astype(np.float32).reshape(tensor.shape)


def _matrix(seed: bytes, tensor: GoldenTensor) -> Array:
    """Rows that map unit variance to variance `scale`²."""
    return _units(seed, tensor) * np.float32(tensor.scale * (3 / tensor.shape[-1]) ** 0.5)


def _transposed(seed: bytes, tensor: GoldenTensor) -> Array:
    return _units(seed, tensor) * np.float32(tensor.scale * (3 / tensor.shape[-2]) ** 0.5)


def _embedding(seed: bytes, tensor: GoldenTensor) -> Array:
    """Unit variance in every column, so that residual and blocks weigh alike."""
    return _units(seed, tensor) * np.float32(tensor.scale * 3**0.5)


def _norm(seed: bytes, tensor: GoldenTensor) -> Array:
    return (1 + _units(seed, tensor) * np.float32(0.4)) * np.float32(tensor.scale)


def _zero_norm(seed: bytes, tensor: GoldenTensor) -> Array:
    return _units(seed, tensor) * np.float32(0.4 * tensor.scale)


def _bias(seed: bytes, tensor: GoldenTensor) -> Array:
    return _units(seed, tensor) * np.float32(0.5 * tensor.scale)


def _far_bias(seed: bytes, tensor: GoldenTensor) -> Array:
    """Mostly small, now and then near ±`scale`."""
    return _units(seed, tensor) ** 7 * np.float32(tensor.scale)


def _dt_bias(seed: bytes, tensor: GoldenTensor) -> Array:
    return _units(seed, tensor) * 2 - 2


def _a_log(seed: bytes, tensor: GoldenTensor) -> Array:
    return _units(seed, tensor) * 2


def _mxfp4_blocks(seed: bytes, tensor: GoldenTensor) -> Array:
    """Two of 16 four-bit floats in a byte, all equally likely: variance about 8.6."""
    count = int(np.prod(tensor.shape))
    return np.frombuffer(hashlib.shake_128(seed).digest(count), np.uint8).reshape(tensor.shape)


def _mxfp4_scales(seed: bytes, tensor: GoldenTensor) -> Array:
    """Shared exponents 2⁻⁶ … 2⁻⁴: products of 64 inputs come near unit variance."""
    return np.floor(_units(seed, tensor) * 1.5).astype(np.int64) + 122


def _expert_table(seed: bytes, tensor: GoldenTensor) -> Array:
    """For every token as many different experts as the table has columns, of `scale` experts."""
    tokens, columns = tensor.shape
    order = _units(seed, tensor._replace(shape=(tokens, int(tensor.scale)))).argsort(axis=1, kind="stable")
    return order[:, :columns].astype(np.int64)


KINDS: dict[str, Callable[[bytes, GoldenTensor], Array]] = {
    "matrix": _matrix,
    "transposed": _transposed,
    "embedding": _embedding,
    "norm": _norm,
    "zero_norm": _zero_norm,
    "bias": _bias,
    "far_bias": _far_bias,
    "dt_bias": _dt_bias,
    "a_log": _a_log,
    "mxfp4_blocks": _mxfp4_blocks,
    "mxfp4_scales": _mxfp4_scales,
    "expert_table": _expert_table,
}
