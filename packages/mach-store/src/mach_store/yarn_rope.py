"""Owns YaRN, the rotary embedding stretched over a longer context, with everything a config can say of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn


class YarnRope(nn.Module):
    """Rotates the first `dims` features of heads; slow frequencies are divided by `factor`.

    Formulas are those of the YaRN paper (arXiv 2309.00071, section 3) as transformers 5 reads its config.
    mlx-lm's knows neither `truncate` (whether the ramp's ends are rounded) nor `attention_factor`.
    """

    def __init__(self, dims: int, parameters: Mapping[str, Any]) -> None:
        """Make the frequencies.

        Args:
            dims: rotated features per head, even.
            parameters: `rope_theta`, `factor`, `original_max_position_embeddings`; and where they are given
                `beta_fast`, `beta_slow`, `truncate`, `attention_factor`, `mscale`, `mscale_all_dim`.
        """
        super().__init__()
        base, factor = parameters["rope_theta"], parameters["factor"]
        low, high = _ramp(dims, parameters)
        wavelengths = [base ** (2 * i / dims) for i in range(dims // 2)]
        kept = [1 - min(max((i - low) / (high - low), 0.0), 1.0) for i in range(dims // 2)]
        self.dims = dims
        self.amplitude = _amplitude(parameters)
        # Periods, as mx.fast.rope takes them; the leading underscore keeps them out of the parameters.
        self._freqs = mx.array(
            [wave / (keep + (1 - keep) / factor) for wave, keep in zip(wavelengths, kept, strict=True)]
        )

    def __call__(self, x: mx.array, offset: int | mx.array = 0) -> mx.array:
        """`x` [batch, heads, tokens, features], the first token at position `offset`."""
        if self.amplitude != 1.0:
            rotated = x[..., : self.dims] * self.amplitude
            rest = x[..., self.dims :]
            x = mx.concatenate([rotated, rest], axis=-1) if rest.shape[-1] else rotated
        return mx.fast.rope(
            x, self.dims, traditional=False, base=None, scale=1.0, offset=offset, freqs=self._freqs
        )


def _ramp(dims: int, parameters: Mapping[str, Any]) -> tuple[float, float]:
    """The feature pairs at which frequencies begin to be divided, and from which they are wholly."""

    def pair(rotations: float) -> float:
        """The feature pair that turns so often within the original context."""
        turns = parameters["original_max_position_embeddings"] / (rotations * 2 * math.pi)
        return dims * math.log(turns) / (2 * math.log(parameters["rope_theta"]))

    low, high = pair(parameters.get("beta_fast") or 32), pair(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True) is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    return low, high + 0.001 if low == high else high


def _amplitude(parameters: Mapping[str, Any]) -> float:
    """What cosine and sine are multiplied by."""
    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])
    factor = parameters["factor"]

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    top, bottom = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return scale(top) / scale(bottom) if top and bottom else scale(1.0)
