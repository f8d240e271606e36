"""Owns the choice of the next token from a row of logits.

Greedy is the argmax of the logits. Sampling uses random numbers keyed by (seed, position) alone, so that a
run can be repeated, and a speculative or batched run can be compared with a plain one token for token.

The order is that of Hugging Face's and vLLM's samplers: bias, allowed tokens, penalties (repetition,
frequency, presence), temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mach_decode.errors import SamplingError
from mach_decode.token_constraint import apply_bitmask

_MASK64 = (1 << 64) - 1
_LEAST_TEMPERATURE = 1e-30
"""Below it float32 has no full precision, and then no number at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen.

    Attributes:
        temperature: 0 is greedy; 0 to 2.
        top_p: nucleus mass, above 0 and at most 1; 1 is off.
        top_k: most likely tokens kept; 0 is off.
        min_p: least probability as a part of the greatest one, 0 to 1; 0 is off.
        repetition_penalty: above 0; 1 is off. Positive logits of tokens already seen (in prompt or answer)
            are divided by it, negative ones multiplied (Keskar et al. 2019, CTRL).
        frequency_penalty: -2 to 2; taken from a token's logit once for each time it stands in the answer.
        presence_penalty: -2 to 2; taken once from the logits of tokens that stand in the answer.
        logit_bias: (token id, what is added to its logit: -100 to 100), each token at most once.
        seed: 64 bits; any integer.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 2.0:
            raise SamplingError("temperature", f"must be from 0 to 2, not {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise SamplingError("top_p", f"must be above 0 and at most 1, not {self.top_p}")
        if self.top_k < 0:
            raise SamplingError("top_k", f"must not be negative, but is {self.top_k}")
        if not 0.0 <= self.min_p <= 1.0:
            raise SamplingError("min_p", f"must be from 0 to 1, not {self.min_p}")
        if not 0.0 < self.repetition_penalty <= 10.0:
            raise SamplingError(
                "repetition_penalty", f"must be above 0 and at most 10, not {self.repetition_penalty}"
            )
        for name in ("frequency_penalty", "presence_penalty"):
            if not -2.0 <= getattr(self, name) <= 2.0:
                raise SamplingError(name, f"must be from -2 to 2, not {getattr(self, name)}")
        for token, bias in self.logit_bias:
            if token < 0:
                raise SamplingError("logit_bias", f"holds the token {token}, which is none")
            if not -100.0 <= bias <= 100.0:
                raise SamplingError("logit_bias", f"must be from -100 to 100, not {bias} (token {token})")
        if len({token for token, _ in self.logit_bias}) < len(self.logit_bias):
            raise SamplingError("logit_bias", "names a token twice")

    @property
    def greedy(self) -> bool:
        """Whether no random number is drawn."""
        return self.temperature == 0.0

    @property
    def looks_back(self) -> bool:
        """Whether a choice depends on the tokens before it, other than through the model."""
        return self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0


def choose(
    logits: mx.array,
    params: SamplingParams,
    position: int,
    seen: Collection[int],
    *,
    answered: Mapping[int, int] | None = None,
    mask: npt.NDArray[np.int32] | None = None,
) -> mx.array:
    """The next token.

    Args:
        logits: [vocabulary], any float dtype.
        params: how to choose.
        position: index in the sequence, prompt included, that the token will have.
        seen: tokens of prompt and answer so far, in any order; read only with a repetition penalty.
        answered: how often each token stands in the answer so far; read only with the other two penalties.
        mask: the tokens that may be chosen, as `TokenConstraint.mask` gives them; None allows all.

    Returns:
        A scalar array, not yet evaluated.
    """
    logits = logits.astype(mx.float32)
    if params.logit_bias:
        tokens, biases = zip(*params.logit_bias, strict=True)
        logits = logits.at[mx.array(tokens)].add(mx.array(biases, mx.float32))
    if mask is not None:
        logits = apply_bitmask(logits, mask)
    if params.repetition_penalty != 1.0 and len(seen):
        ids = mx.array(sorted(set(seen)))
        rows = logits[ids]
        penalty = params.repetition_penalty
        logits[ids] = mx.where(rows > 0, rows / penalty, rows * penalty)
    if answered and (params.frequency_penalty != 0.0 or params.presence_penalty != 0.0):
        ids = mx.array(list(answered))
        times = mx.array(list(answered.values()), mx.float32)
        logits = logits.at[ids].add(-params.presence_penalty - params.frequency_penalty * times)
    if params.greedy:
        return mx.argmax(logits)
    # From the greatest down, so that no temperature, however small, makes an infinity of it.
    scaled = (logits - logits.max()) / max(params.temperature, _LEAST_TEMPERATURE)
    kept = _truncate(scaled, params)
    return mx.random.categorical(kept, key=mx.random.key(_mix(params.seed, position)))


def _truncate(logits: mx.array, params: SamplingParams) -> mx.array:
    vocabulary = logits.shape[-1]
    if 0 < params.top_k < vocabulary:
        least = mx.topk(logits, params.top_k).min()
        logits = mx.where(logits < least, -mx.inf, logits)
    if params.top_p < 1.0:
        order = mx.argsort(-logits)
        probabilities = mx.softmax(logits[order])
        # A token stays as long as those before it have not yet filled the nucleus: never fewer than one.
        before = mx.cumsum(probabilities) - probabilities
        kept = mx.where(before < params.top_p, logits[order], -mx.inf)
        logits = kept[mx.argsort(order)]
    if params.min_p > 0.0:
        probabilities = mx.softmax(logits)
        logits = mx.where(probabilities < params.min_p * probabilities.max(), -mx.inf, logits)
    return logits


def _mix(seed: int, position: int) -> int:
    """64 well-spread bits for (seed, position): two rounds of SplitMix64 (Steele et al. 2014)."""
    return _splitmix64(_splitmix64(seed & _MASK64) ^ position)


def _splitmix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)
