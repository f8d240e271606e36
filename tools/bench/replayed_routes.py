"""Owns routes that mach-pico took, and their replay in a random model, whose own router chooses evenly.

mach-pico has 32 experts in each of 6 layers. A model with S × 32 experts that takes k of them replays S
*streams*: stream s takes the k / S strongest routes of one token of answer s, and they go to the experts 32 s
… 32 s + 31. So an expert is asked for as often, as soon again, and together with the same others as in
mach-pico. Layer l replays layer l mod 6, of answer s + ⌊l / 6⌋, so that no two layers are alike. What the
router of the next layer says of this layer's input is replayed as well: guesses are as good as mach-pico's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mach_decode.engine import Engine, EngineConfig
from mach_decode.request import GenerationRequest
from mach_decode.sampling import SamplingParams
from mach_store.gather_switch_glu import GatherSwitchGLU

PROMPTS = ("def read(path):\n", "class Parser:\n", "import asyncio\n", "from __future__ import annotations\n")
"""What each recorded answer begins with."""

FORETOLD = 16
"""Experts that are recorded of what the next layer's router says."""

CHOSEN, LEFT = 4.0, -8.0
"""Logits of replayed routes, of all others: softmax makes the chosen ones even, and nothing of the rest."""


class RecordedRoutes(NamedTuple):
    """What mach-pico did in some answers of equal length.

    Attributes:
        tokens: [answers, length] ids.
        ids: [answers, layers, length, k] experts, the strongest first.
        foretold: [answers, layers - 1, length, FORETOLD] experts of the next layer, ranked by its router on
            what this layer's router was given.
        experts: of one layer.
    """

    tokens: NDArray[np.uint16]
    ids: NDArray[np.uint16]
    foretold: NDArray[np.uint16]
    experts: int

    def save(self, path: Path) -> None:
        """Write a .npz file."""
        np.savez_compressed(path, **self._asdict())

    @classmethod
    def load(cls, path: Path) -> RecordedRoutes:
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            return cls(arrays["tokens"], arrays["ids"], arrays["foretold"], int(arrays["experts"]))


def record_routes(length: int = 2000, checkpoint: str = "mach-pico") -> RecordedRoutes:
    """Let mach-pico write `length` tokens after each of PROMPTS (temperature 0.8), and watch its routers."""
    engine = Engine.load(EngineConfig(checkpoint=checkpoint))
    blocks = [layer.mlp for layer in engine.model.model.layers]
    gates = [block.gate for block in blocks]
    for block, following in zip(blocks, [*gates[1:], None], strict=True):
        block.gate = _Watched(block.gate, following)
        block.switch_mlp.foretell(None)  # guesses are no routes
    tokens, ids, foretold = [], [], []
    for seed, prompt in enumerate(PROMPTS):
        for block in blocks:
            block.gate.seen.clear()
            block.gate.ahead.clear()
        sampling = SamplingParams(
            temperature=0.8, seed=seed, logit_bias=tuple((end, -100.0) for end in sorted(engine.end_tokens))
        )
        request = GenerationRequest(prompt=engine.encode(prompt), max_tokens=length, sampling=sampling)
        tokens.append([event.token for event in engine.generate(request) if event.token is not None])
        ids.append(np.stack([_strongest(block.gate.seen, length, block.top_k) for block in blocks]))
        foretold.append(np.stack([_strongest(block.gate.ahead, length, FORETOLD) for block in blocks[:-1]]))
    experts = engine.store.layers[0].num_experts
    engine.close()
    return RecordedRoutes(
        np.array(tokens, np.uint16),
        np.stack(ids).astype(np.uint16),
        np.stack(foretold).astype(np.uint16),
        experts,
    )


def _strongest(rows: Sequence[mx.array], length: int, count: int) -> NDArray[np.intp]:
    logits = np.concatenate([np.array(row).reshape(-1, row.shape[-1]) for row in rows])
    return np.argsort(-logits[-length:], axis=1, kind="stable")[:, :count]


class Replay:
    """Routes in the place of a model's own, in mach's and mlx-lm's models of qwen3_moe alike.

    The router's product is still computed, so that a pass costs and waits as it would; its values are not
    used.
    """

    def __init__(self, model: Any, recorded: RecordedRoutes) -> None:
        """Replace every `mlp.gate` of `model`.

        Raises:
            ValueError: the model's experts are no 1 to 4 times the recorded ones, or its k is not in reach.
        """
        answers, layers, _, k = recorded.ids.shape
        self._gates: list[_Replayed] = []
        for number, layer in enumerate(model.model.layers):
            block = layer.mlp
            streams, rest = divmod(block.num_experts, recorded.experts)
            if rest or not 1 <= streams <= answers or block.top_k % streams or block.top_k > k * streams:
                raise ValueError(
                    f"{block.num_experts} experts, top {block.top_k}: the routes are of {recorded.experts} "
                    f"experts, top {k}, of {answers} answers"
                )
            logits = np.full((recorded.ids.shape[2], block.num_experts), LEFT, np.float32)
            ahead = logits.copy()
            turn, recorded_layer = divmod(number, layers)
            for stream in range(streams):
                answer = (stream + turn) % answers
                strongest = recorded.ids[answer, recorded_layer, :, : block.top_k // streams]
                columns = stream * recorded.experts + strongest.astype(np.int64)
                np.put_along_axis(logits, columns, CHOSEN, axis=1)
                if recorded_layer + 1 < layers:
                    ranked = recorded.foretold[answer, recorded_layer].astype(np.int64)
                    scores = -np.arange(ranked.shape[-1], dtype=np.float32)[None] / FORETOLD
                    np.put_along_axis(ahead, stream * recorded.experts + ranked, scores, axis=1)
            block.gate = _Replayed(block.gate, mx.array(logits))
            self._gates.append(block.gate)
            if isinstance(block.switch_mlp, GatherSwitchGLU):
                told = recorded_layer + 1 < layers and number + 1 < len(model.model.layers)
                block.switch_mlp.foretell(block.gate.foretelling(mx.array(ahead)) if told else None)

    def seek(self, position: int) -> None:
        """The next token takes the routes of this recorded position; behind the last one comes the first."""
        for gate in self._gates:
            gate.position = position


class _Watched(nn.Module):
    """A router that keeps what it says."""

    def __init__(self, gate: nn.Module, following: nn.Module | None) -> None:
        super().__init__()
        self._gate, self._following, self.seen, self.ahead = gate, following, [], []

    def __call__(self, x: mx.array) -> mx.array:
        logits: mx.array = self._gate(x)
        self.seen.append(logits)
        if self._following is not None:
            self.ahead.append(self._following(x))
        return logits


class _Replayed(nn.Module):
    """A router that says what was recorded."""

    def __init__(self, gate: nn.Module, logits: mx.array) -> None:
        super().__init__()
        self._gate, self._logits, self.position = gate, logits, 0

    def __call__(self, x: mx.array) -> mx.array:
        length, tokens = self._logits.shape[0], x.shape[-2]
        where = mx.array((self.position + np.arange(tokens)) % length, mx.uint32)
        self.position += tokens
        # Times zero, so that the routes are known no sooner than the router's product.
        return self._gate(x) * 0 + self._logits[where]

    def foretelling(self, scores: mx.array) -> Callable[[mx.array], mx.array]:
        """What was recorded of the next router, for the tokens that were routed last; at a product's cost."""

        def scores_of(x: mx.array) -> mx.array:
            length, tokens = scores.shape[0], x.shape[-2]
            where = mx.array((self.position - tokens + np.arange(tokens)) % length, mx.uint32)
            return self._gate(x) * 0 + scores[where]

        return scores_of
