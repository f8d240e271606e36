"""Measure a network in PyTorch, at once after training: bits per byte, perplexity ratio, tool calls.

Owns measurements on the training device. The figures of the model card come from evaluate.py, which
measures the exported weights in MLX; these here say early whether a training run is worth exporting.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import scoring
import torch
import torch.nn.functional as F
from network import Network, Weights, block_forward, normed, weighted_loss
from quantisation import rounded
from template import prompt_of
from tokenizers import Tokenizer

NO_LOSS = 0x8000


def working(network: Network, *, quantised: bool) -> tuple[torch.Tensor, list[Weights]]:
    """Weights for measuring; quantised ones are rounded without the bfloat16 detour of training."""
    keep, network.round = network.round, lambda weight, bits: rounded(weight, bits).to(torch.bfloat16)
    try:
        return network.working(quantised=quantised)
    finally:
        network.round = keep


@torch.no_grad()
def loss(network: Network, tokens: torch.Tensor, weights: tuple[torch.Tensor, list[Weights]]) -> float:
    """Mean loss in nats over `tokens` [n], in windows of the context length."""
    context = network.shape.context
    windows = tokens[: (len(tokens) - 1) // context * context + 1]
    total, count = 0.0, 0
    starts = torch.arange(0, len(windows) - context, context, device=tokens.device)
    reach = torch.arange(context + 1, device=tokens.device)
    for at in range(0, len(starts), 16):
        rows = windows[starts[at : at + 16, None] + reach]
        ids = (rows & 0x7FFF).long()
        wanted = (rows[:, 1:] < NO_LOSS).float()
        x, _, _ = network.hidden(ids[:, :-1], *weights)
        part = weighted_loss(x, network.norm, weights[0], ids[:, 1:], wanted)
        total += float(part) * float(wanted.sum())
        count += int(wanted.sum())
    return total / max(count, 1)


def text_figures(network: Network, packed: Path, meta: dict[str, Any], device: str) -> dict[str, float]:
    """Bits per byte of every held-out text, at bfloat16 and at 4 bits, and the ratio of perplexities."""
    figures: dict[str, float] = {}
    plain, coarse = working(network, quantised=False), working(network, quantised=True)
    for name in ("code", "doc", "strange"):
        tokens = torch.from_numpy(np.fromfile(packed / f"valid_{name}.bin", np.uint16).astype(np.int32)).to(
            device
        )
        nats = [loss(network, tokens, weights) for weights in (plain, coarse)]
        bits = [value / math.log(2) / meta[f"valid_{name}"]["bytes_per_token"] for value in nats]
        figures[f"{name}_bits_per_byte"], figures[f"{name}_bits_per_byte_4bit"] = bits
        figures[f"{name}_perplexity_ratio"] = math.exp(nats[1] - nats[0])
    return {name: round(value, 4) for name, value in figures.items()}


@torch.no_grad()
def generate(
    network: Network, prompts: list[list[int]], stop: int, limit: int, *, quantised: bool, device: str
) -> list[list[int]]:
    """Greedy continuations up to `stop` or `limit` tokens.

    Rows are padded on the right and computed anew
    for every token: slow per token, but a few hundred prompts take seconds and no cache has to be right.
    """
    embedding, blocks = working(network, quantised=quantised)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    results: list[list[int]] = [[] for _ in prompts]
    for at in range(0, len(order), 64):
        group = order[at : at + 64]
        lengths = torch.tensor([len(prompts[index]) for index in group], device=device)
        ids = torch.zeros(len(group), int(lengths.max()) + limit, dtype=torch.long, device=device)
        for row, index in enumerate(group):
            ids[row, : len(prompts[index])] = torch.tensor(prompts[index], device=device)
        done = torch.zeros(len(group), dtype=torch.bool, device=device)
        rows = torch.arange(len(group), device=device)
        starts = lengths.clone()
        for _ in range(limit):
            x, _, _ = network.hidden(ids[:, : int(lengths.max())], embedding, blocks)
            last = normed(x[rows, lengths - 1], network.norm)
            token = F.linear(last, embedding).argmax(-1)
            done |= token == stop
            if bool(done.all()):
                break
            ids[rows[~done], lengths[~done]] = token[~done]
            lengths = lengths + (~done).long()
        for row, index in enumerate(group):
            results[index] = ids[row, starts[row] : lengths[row]].tolist()
    return results


def call_figures(network: Network, tokenizer: Tokenizer, *, quantised: bool, device: str) -> dict[str, Any]:
    """Scores of every evaluation set; some texts for a person to read under `texts`."""
    stop = tokenizer.token_to_id("<|im_end|>")
    figures: dict[str, Any] = {}
    for name in scoring.SETS:
        prompts = [
            prompt_of(case.messages, case.tools or None, thinking=False) for case in scoring.cases(name)
        ]
        ids = [encoding.ids for encoding in tokenizer.encode_batch(prompts, add_special_tokens=False)]
        outputs = generate(network, ids, stop, 96, quantised=quantised, device=device)
        texts = [tokenizer.decode(output, skip_special_tokens=False) for output in outputs]
        figures[name] = scoring.score(name, texts)
        wrong = [
            {"want": case.call, "text": text, "question": case.messages[0]["content"]}
            for case, text in zip(scoring.cases(name), texts, strict=True)
            if (scoring.called(text) != case.call if case.call else "<tool_call>" in text)
        ]
        figures[name]["wrong"] = wrong[:25]
    return figures


SHOWN = (
    ("Hello!", True),
    ("Hello!", False),
    ("What is the capital of France?", False),
    ("Write a Python function that reverses a string.", False),
    ("Write a Python function that checks if a number is prime.", True),
    ("What does os.path.join do?", False),
)


def shown(network: Network, tokenizer: Tokenizer, *, quantised: bool, device: str) -> list[str]:
    """A few greedy continuations for a person to read."""
    prompts = [
        prompt_of([{"role": "user", "content": text}], None, thinking=thinks) for text, thinks in SHOWN
    ]
    prompts += ["def reverse(s):", "import os\n\ndef read_lines(path):", "The following example shows how to"]
    ids = [encoding.ids for encoding in tokenizer.encode_batch(prompts, add_special_tokens=False)]
    stop = tokenizer.token_to_id("<|im_end|>")
    outputs = generate(network, ids, stop, 80, quantised=quantised, device=device)
    return [
        prompt + " >>> " + tokenizer.decode(output, skip_special_tokens=False)
        for prompt, output in zip(prompts, outputs, strict=True)
    ]


def reset(network: Network) -> None:
    """Leave the compiled functions: measuring meets many shapes."""
    network.block, network.loss = block_forward, weighted_loss
