"""Train mach-pico, by the clock: a run of any length ends with the rate decayed to zero.

Owns the loop: batches, rates, when the quantisation-aware tail begins, what is logged. After the last step
it measures (probe.py) and exports (export.py).

In: BUILD/packed and BUILD/tokenizer. Out: OUT/hf-bf16, OUT/metrics.json, OUT/training.log.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import export
import numpy as np
import probe
import torch
from muon import Muon
from network import MATRICES, Network, Shape, block_forward, weighted_loss
from quantisation import straight_through
from tokenizers import Tokenizer
from torch import Tensor

NO_LOSS = 0x8000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a run goes. Shares are of the run's time; rates are the peaks."""

    seconds: float = 400.0
    batch: int = 64
    chat_rows: int = 8
    late_chat_rows: int = 14
    late: float = 0.7
    chat_weight: float = 3.0
    rate_matrices: float = 3e-3
    rate_others: float = 2e-3
    decay: float = 0.7
    warmup_steps: int = 150
    weight_decay: float = 0.1
    balance: float = 0.005
    quantised_from: float = 0.8
    measure_every: float = 100.0
    max_steps: int = 10**9
    seed: int = 0


class Batches:
    """Batches of token rows: text windows at a fresh offset every epoch, and whole rows of conversations."""

    def __init__(self, packed: Path, plan: Plan, context: int, device: str) -> None:
        self.plan, self.context, self.device = plan, context, device
        self.generator = torch.Generator().manual_seed(plan.seed + 1)
        self.text = self._load(packed / "text.bin")
        self.chat = self._load(packed / "chat.bin").view(-1, 2049)[:, : context + 1]
        self.reach = torch.arange(context + 1, device=device)
        self.windows, self.rows = self._text(), self._chat()

    def _load(self, path: Path) -> Tensor:
        return torch.from_numpy(np.fromfile(path, np.uint16).view(np.int16)).to(self.device)

    def _text(self) -> Iterator[Tensor]:
        count = (len(self.text) - 2 * self.context) // self.context
        while True:
            offset = int(torch.randint(0, self.context, (), generator=self.generator))
            starts = torch.randperm(count, generator=self.generator) * self.context + offset
            size = self.plan.batch - self.plan.chat_rows
            for at in range(0, count - size, size):
                yield starts[at : at + size].to(self.device)

    def _chat(self) -> Iterator[Tensor]:
        while True:
            order = torch.randperm(len(self.chat), generator=self.generator)
            size = min(self.plan.late_chat_rows, len(order))
            for at in range(0, len(order) - size + 1, size):
                yield order[at : at + size].to(self.device)

    def next(self, progress: float) -> tuple[Tensor, Tensor, Tensor]:
        """(ids, targets, weights), each [batch, context]."""
        late = progress > self.plan.late
        chat_rows = self.plan.late_chat_rows if late else self.plan.chat_rows
        starts = next(self.windows)[: self.plan.batch - chat_rows]
        text = self.text[starts[:, None] + self.reach]
        chat = self.chat[next(self.rows)[:chat_rows]]
        rows = torch.cat([text, chat]).int() & 0xFFFF
        ids = (rows & 0x7FFF).long()
        weights = (rows[:, 1:] < NO_LOSS).float()
        weights[len(text) :] *= self.plan.chat_weight
        return ids[:, :-1], ids[:, 1:], weights


def rate_at(plan: Plan, step: int, progress: float) -> float:
    """Share of the peak rate: linear warm-up by steps, then flat, then linear to zero by the clock."""
    warm = min(1.0, (step + 1) / plan.warmup_steps)
    return warm * min(1.0, max(0.0, (1 - progress) / plan.decay))


class Trainer:
    """A network with its optimisers and its log."""

    def __init__(self, shape: Shape, plan: Plan, build: Path, out: Path, device: str) -> None:
        torch.manual_seed(plan.seed)
        out.mkdir(parents=True, exist_ok=True)
        self.plan, self.build, self.out, self.device = plan, build, out, device
        self.start = time.time()
        self.log_file = (out / "training.log").open("w")
        self.network = Network(shape).to(device)
        named = list(self.network.named_parameters())
        matrices = [p for name, p in named if name.split(".")[-1] in MATRICES]
        self.others = [p for name, p in named if name.split(".")[-1] not in MATRICES]
        self.muon = Muon(matrices, {block.gate_up for block in self.network.blocks}, plan.weight_decay)
        self.adam = torch.optim.AdamW(
            self.others, lr=plan.rate_others, betas=(0.9, 0.95), weight_decay=0.0, fused=device == "cuda"
        )
        self.batches = Batches(build / "packed", plan, shape.context, device)
        self.history: list[dict[str, float]] = []

    def log(self, *parts: object) -> None:
        """Print with the time since the start, and keep."""
        line = f"[{time.time() - self.start:6.1f}] " + " ".join(str(part) for part in parts)
        print(line, flush=True)
        self.log_file.write(line + "\n")
        self.log_file.flush()

    def compile(self) -> None:
        """One graph for all blocks (seconds, not minutes), and one each for the loss and for rounding."""
        self.network.block = torch.compile(block_forward, fullgraph=True, dynamic=False)
        self.network.loss = torch.compile(weighted_loss, fullgraph=True, dynamic=False)
        self.network.round = torch.compile(straight_through, fullgraph=True, dynamic=False)

    def step(self, step: int, progress: float, *, quantised: bool) -> tuple[Tensor, Tensor, Tensor]:
        """One update; (loss, balance loss, route shares)."""
        loss, balance, shares = self.network(*self.batches.next(progress), quantised=quantised)
        (loss + self.plan.balance * balance).backward()
        torch.nn.utils.clip_grad_norm_(self.others, 1.0)
        share = rate_at(self.plan, step, progress)
        for group in self.adam.param_groups:
            group["lr"] = self.plan.rate_others * share
        self.adam.step()
        self.muon.step(self.plan.rate_matrices * share)
        self.network.zero_grad(set_to_none=True)
        return loss.detach(), balance.detach(), shares

    def warm_up(self) -> None:
        """Compile both kinds of step before the clock starts; the rate is zero, so nothing is learnt."""
        for quantised in (False, True):
            self.step(-1, 0.0, quantised=quantised)
            self.log("compiled", "quantisation-aware step" if quantised else "step")

    def run(self) -> None:
        """Train until the time is up."""
        plan, tokens_per_step = self.plan, self.plan.batch * self.network.shape.context
        begun, paused, step, progress, next_measure = time.time(), 0.0, 0, 0.0, plan.measure_every
        while progress < 1 and step < plan.max_steps:
            loss, balance, shares = self.step(step, progress, quantised=progress >= plan.quantised_from)
            step += 1
            if step % 20:
                continue
            value, elapsed = float(loss), time.time() - begun - paused
            progress = min(1.0, elapsed / plan.seconds)
            if not math.isfinite(value) or (elapsed > 60 and value > 5.5):
                raise SystemExit(f"training failed: loss {value} after {step} steps")
            record = {
                "step": step,
                "seconds": round(elapsed, 1),
                "tokens": step * tokens_per_step,
                "loss": round(value, 4),
                "balance": round(float(balance), 3),
            }
            self.history.append(record)
            if step % 200 == 0 or step == 20:
                speed = step * tokens_per_step / elapsed / 1e6
                heaviest = float(shares.max()) * self.network.shape.experts
                self.log(json.dumps(record), f"{speed:.3f} M tokens/s, heaviest expert {heaviest:.1f} x even")
            if elapsed > next_measure and progress < 1:
                pause = time.time()
                self.measure_text(record)
                paused += time.time() - pause
                next_measure += plan.measure_every
        self.log(f"{step} steps, {step * tokens_per_step / 1e6:.1f} M tokens in {elapsed:.1f} s")

    def measure_text(self, record: dict[str, Any]) -> None:
        """Add the held-out figures to a record of the history."""
        compiled = self.network.block, self.network.loss
        probe.reset(self.network)
        meta = json.loads((self.build / "packed/meta.json").read_text())
        record["held_out"] = probe.text_figures(self.network, self.build / "packed", meta, self.device)
        self.network.block, self.network.loss = compiled
        self.log("held out", json.dumps(record["held_out"]))

    def finish(self) -> None:
        """Measure, export, and write metrics.json."""
        probe.reset(self.network)
        final: dict[str, Any] = {"step": self.history[-1]["step"] if self.history else 0}
        tokenizer_folder = self.build / "tokenizer"
        shards = export.write(self.network, tokenizer_folder, self.out / "hf-bf16")
        self.log("exported", shards, "shards")
        self.measure_text(final)
        tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
        for name, quantised in (("bf16", False), ("4bit", True)):
            figures = probe.call_figures(self.network, tokenizer, quantised=quantised, device=self.device)
            final[f"calls_{name}"] = figures
            brief = {key: {k: v for k, v in value.items() if k != "wrong"} for key, value in figures.items()}
            self.log("calls", name, json.dumps(brief))
        final["shown"] = probe.shown(self.network, tokenizer, quantised=True, device=self.device)
        for text in final["shown"]:
            self.log("shown", repr(text))
        parameters, active = self.network.sizes()
        metrics = {
            "parameters": parameters,
            "active_parameters": active,
            "shape": asdict(self.network.shape),
            "plan": asdict(self.plan),
            "final": final,
            "history": self.history,
        }
        (self.out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
        self.log("done")


def main() -> None:
    """Train, measure, export."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--build", type=Path, default=Path("build"))
    arguments.add_argument("--out", type=Path, default=Path("build/out"))
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--no-compile", action="store_true")
    for record in (Shape, Plan):
        for field in fields(record):
            kind = {"int": int, "float": float}[str(field.type)]
            arguments.add_argument("--" + field.name.replace("_", "-"), type=kind, default=field.default)
    options = vars(arguments.parse_args())
    shape = Shape(**{field.name: options[field.name] for field in fields(Shape)})
    plan = Plan(**{field.name: options[field.name] for field in fields(Plan)})
    trainer = Trainer(shape, plan, options["build"], options["out"], options["device"])
    parameters, active = trainer.network.sizes()
    trainer.log(f"{parameters / 1e6:.2f} M parameters, {active / 1e6:.2f} M active")
    if not options["no_compile"]:
        trainer.compile()
        trainer.warm_up()
    trainer.run()
    trainer.finish()


if __name__ == "__main__":
    main()
