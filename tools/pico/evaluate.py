"""Measure a checkpoint in MLX: bits per byte, perplexity ratio, tool calls, use of the experts.

Owns the figures of the model card. Prints one JSON document. Weights that are stored in 4 bits are expanded
to float32 first: the same function, and much faster on a CPU, where MLX multiplies quantised matrices row
by row. `--kernels` leaves them as they are, to check that claim on a few prompts.

    python evaluate.py MODEL [--reference MODEL] [--packed DIR] [--windows N] [--cases N] [--kernels]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import scoring
from mlx.utils import tree_unflatten
from mlx_lm import load
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

CONTEXT = 2048
NO_LOSS = 0x8000
CALL_TOKENS = 96


class SortedExperts(nn.Module):
    """A sparse block that multiplies expert by expert, and notes the routes while `routes` is a list.

    On a CPU, MLX gathers one row at a time; sorting the rows by expert first makes long prompts bearable.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.gate, self.top_k = block.gate, block.top_k
        layers = block.switch_mlp
        self.weights = [layers.gate_proj.weight, layers.up_proj.weight, layers.down_proj.weight]
        self._routes: list[np.ndarray] | None = None

    def note(self, routes: list[np.ndarray] | None) -> None:
        """Begin or end noting routes [tokens, active]."""
        self._routes = routes

    def __call__(self, x: mx.array) -> mx.array:
        """`x` [..., hidden] -> same."""
        flat = x.reshape(-1, x.shape[-1])
        chances = mx.softmax(self.gate(flat), axis=-1, precise=True)
        chosen = mx.argpartition(chances, kth=-self.top_k, axis=-1)[:, -self.top_k :]
        scores = mx.take_along_axis(chances, chosen, axis=-1)
        scores = scores / scores.sum(axis=-1, keepdims=True)
        experts = np.array(chosen)
        if self._routes is not None:
            self._routes.append(experts)
        order = np.argsort(experts.reshape(-1), kind="stable")
        counts = np.bincount(experts.reshape(-1), minlength=chances.shape[-1])
        rows = flat[mx.array(order // self.top_k)]
        gate, up, down = self.weights
        parts, at = [], 0
        for expert in np.nonzero(counts)[0].tolist():
            h = rows[at : at + int(counts[expert])]
            at += int(counts[expert])
            parts.append((nn.silu(h @ gate[expert].T) * (h @ up[expert].T)) @ down[expert].T)
        back = mx.array(np.argsort(order, kind="stable"))
        y = mx.concatenate(parts)[back].reshape(-1, self.top_k, x.shape[-1])
        return (y * scores[..., None]).sum(axis=1).reshape(x.shape)


def expanded(model: nn.Module) -> nn.Module:
    """The model with every quantised layer replaced by a float32 one of equal values, experts sorted."""
    replaced: list[tuple[str, nn.Module]] = []
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding | QuantizedSwitchLinear):
            continue
        weight = mx.dequantize(
            layer.weight, layer.scales, layer.biases, group_size=layer.group_size, bits=layer.bits
        ).astype(mx.float32)
        if isinstance(layer, nn.QuantizedLinear):
            plain: nn.Module = nn.Linear(1, 1, bias=False)
        elif isinstance(layer, nn.QuantizedEmbedding):
            plain = nn.Embedding(1, 1)
        else:
            plain = SwitchLinear(1, 1, 1, bias=False)
        plain.weight = weight
        replaced.append((name, plain))
    if replaced:
        model.update_modules(tree_unflatten(replaced))
    model.set_dtype(mx.float32)
    for layer in model.model.layers:
        layer.mlp = SortedExperts(layer.mlp)
    mx.eval(model.parameters())
    return model


def windows(path: Path, count: int) -> Iterator[np.ndarray]:
    """The first `count` windows of CONTEXT + 1 tokens of a packed file."""
    tokens = np.fromfile(path, np.uint16)
    for start in range(0, min(count * CONTEXT, len(tokens) - CONTEXT - 1), CONTEXT):
        yield tokens[start : start + CONTEXT + 1]


def nats(model: nn.Module, path: Path, count: int) -> tuple[float, int]:
    """(mean loss in nats, targets counted) over the first windows of a file."""
    total, targets = 0.0, 0
    for window in windows(path, count):
        ids = mx.array((window & 0x7FFF).astype(np.int32))
        wanted = mx.array((window[1:] < NO_LOSS).astype(np.float32))
        losses = nn.losses.cross_entropy(model(ids[None, :-1])[0], ids[1:]) * wanted
        total += float(losses.sum())
        targets += int(wanted.sum())
    return total / targets, targets


def text_figures(model: nn.Module, reference: nn.Module | None, packed: Path, count: int) -> dict[str, Any]:
    """Bits per byte of every held-out text, and the ratio of perplexities to the reference's."""
    meta = json.loads((packed / "meta.json").read_text())
    figures: dict[str, Any] = {}
    for name in ("code", "strange", "doc"):
        path = packed / f"valid_{name}.bin"
        value, targets = nats(model, path, count)
        per_byte = math.log(2) * meta[f"valid_{name}"]["bytes_per_token"]
        figures[name] = {"tokens": targets, "bits_per_byte": value / per_byte, "perplexity": math.exp(value)}
        if reference is not None:
            other, _ = nats(reference, path, count)
            figures[name] |= {
                "reference_bits_per_byte": other / per_byte,
                "reference_perplexity": math.exp(other),
                "perplexity_ratio": math.exp(value - other),
            }
    return figures


def greedy(model: nn.Module, tokenizer: Any, ids: list[int], limit: int) -> str:
    """The greedy continuation of a prompt, without the token that ends it."""
    cache = make_prompt_cache(model)
    found: list[int] = []
    logits = model(mx.array([ids]), cache=cache)
    while len(found) < limit:
        token = int(logits[0, -1].argmax())
        if token in tokenizer.eos_token_ids:
            break
        found.append(token)
        logits = model(mx.array([[token]]), cache=cache)
    return tokenizer.decode(found)


def call_figures(model: nn.Module, tokenizer: Any, limit: int | None, *, thinking: bool) -> dict[str, Any]:
    """Scores of every evaluation set, or of its first `limit` cases."""
    figures: dict[str, Any] = {}
    options = {} if thinking else {"enable_thinking": False}
    for name in scoring.SETS:
        texts = []
        for case in list(scoring.cases(name))[:limit]:
            ids = tokenizer.apply_chat_template(
                case.messages,
                tools=case.tools or None,
                add_generation_prompt=True,
                return_dict=False,
                **options,
            )
            texts.append(greedy(model, tokenizer, ids, CALL_TOKENS))
        figures[name] = scoring.score(name, texts)
    return figures


def expert_figures(model: nn.Module, packed: Path, count: int) -> list[dict[str, Any]]:
    """Per layer: how unevenly held-out code uses the experts, and how a cache of experts would fare."""
    notes: list[list[np.ndarray]] = [[] for _ in model.model.layers]
    for layer, note in zip(model.model.layers, notes, strict=True):
        layer.mlp.note(note)
    for window in windows(packed / "valid_code.bin", count):
        mx.eval(model(mx.array((window[:-1] & 0x7FFF).astype(np.int32))[None]))
    figures = []
    for layer, note in zip(model.model.layers, notes, strict=True):
        layer.mlp.note(None)
        routes = np.concatenate(note)
        shares = np.bincount(routes.reshape(-1), minlength=layer.mlp.gate.weight.shape[0]) / routes.size
        ranked = np.sort(shares)[::-1]
        kept = (routes[1:, :, None] == routes[:-1, None, :]).any(-1).mean()
        figures.append(
            {
                "top8_share": float(ranked[:8].sum()),
                "heaviest_over_even": float(ranked[0] * len(ranked)),
                "lightest_over_even": float(ranked[-1] * len(ranked)),
                "effective_experts": float(np.exp(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())),
                "kept_from_previous_token": float(kept),
                "lru_hit_rate": {str(size): lru_hits(routes[:20_000], size) for size in (8, 12, 16)},
                "shares": [round(float(share), 5) for share in shares],
            }
        )
    return figures


def lru_hits(routes: np.ndarray, size: int) -> float:
    """Hit rate of a least-recently-used cache of `size` experts over routes [tokens, active]."""
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for token in routes.tolist():
        for expert in token:
            hits += expert in held
            held[expert] = None
            held.move_to_end(expert)
            if len(held) > size:
                held.popitem(last=False)
    return hits / routes.size


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("model", type=Path)
    arguments.add_argument(
        "--reference", type=Path, help="checkpoint whose perplexity is the measure, usually bf16"
    )
    arguments.add_argument(
        "--packed", type=Path, help="folder of packing.py; without it only calls are measured"
    )
    arguments.add_argument("--windows", type=int, default=100)
    arguments.add_argument("--cases", type=int, help="cases per set; default all")
    arguments.add_argument("--thinking", action="store_true")
    arguments.add_argument("--kernels", action="store_true", help="keep quantised layers as they are")
    options = arguments.parse_args()
    model, tokenizer = load(str(options.model))
    model.set_dtype(mx.float32)
    if not options.kernels:
        model = expanded(model)
    figures: dict[str, Any] = {"model": options.model.name}
    begun = time.time()
    figures["calls"] = call_figures(model, tokenizer, options.cases, thinking=options.thinking)
    print(f"calls: {time.time() - begun:.0f} s", file=sys.stderr)
    if options.packed:
        reference = expanded(load(str(options.reference))[0]) if options.reference else None
        figures["text"] = text_figures(model, reference, options.packed, options.windows)
        figures["experts"] = expert_figures(model, options.packed, min(options.windows, 50))
        print(f"all: {time.time() - begun:.0f} s", file=sys.stderr)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
