"""Eviction policies and predictors of the next layer's experts, on recorded routes of mach-pico.

    python tools/bench/bench_eviction.py [--tokens 20000] [--csv]

Code and prose of this repository, conversations (the prompts of tools/pico/eval with sampled answers), and
sampled continuations of code. Routes are recorded with the whole text as the prompt, and replayed token by
token, as decoding would ask for them. With `--csv` the figures replace those in docs/bench/eviction.csv and
docs/bench/prefetch.csv.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from bench_record import append_rows
from numpy.typing import NDArray

from mach_decode.engine import Engine, EngineConfig
from mach_decode.request import GenerationRequest
from mach_decode.sampling import SamplingParams
from mach_store.eviction import POLICIES, EvictionPolicy
from mach_store.expert_predictor import ExpertPredictor
from mach_store.pool_shape import PoolShape

ROOT = Path(__file__).resolve().parents[2]
CHUNK, CONTEXT, RANKED = 256, 1900, 8
SIZES = (0.125, 0.25, 0.5)
ROOM = 4
"""Experts that may be prefetched for a layer at once."""
WARM = 0.1
"""The part of a text kind's tokens that is not counted."""


class Routes(NamedTuple):
    """ids [tokens, layers, k]; ahead [tokens, layers - 1, RANKED]: the next layer's router's ranking."""

    ids: NDArray[np.uint16]
    ahead: NDArray[np.uint16]


def watch_routers(engine: Engine) -> Callable[[], Routes]:
    """Let every MoE block tell its input; the function returned gives the routes of the last pass."""
    layers = engine.model.model.layers
    inputs: dict[int, mx.array] = {}

    def watched(number: int, kind: type) -> type:
        class Watched(kind):  # type: ignore[misc]
            def __call__(self, x: mx.array) -> mx.array:
                inputs[number] = x
                return super().__call__(x)

        return Watched

    for number, layer in enumerate(layers):
        layer.mlp.__class__ = watched(number, type(layer.mlp))

    def routes() -> Routes:
        k = layers[0].mlp.top_k
        chosen, ahead = [], []
        for number, layer in enumerate(layers):
            gates = layer.mlp.gate(inputs[number])[0]
            chosen.append(mx.argpartition(gates, kth=-k, axis=-1)[:, -k:])
            if number + 1 < len(layers):
                following = layers[number + 1].mlp.gate(inputs[number])[0]
                ahead.append(mx.argsort(-following, axis=-1)[:, :RANKED])
        ids, ranks = mx.stack(chosen, axis=1), mx.stack(ahead, axis=1)
        return Routes(np.array(ids).astype(np.uint16), np.array(ranks).astype(np.uint16))

    return routes


def texts(engine: Engine, kind: str) -> Iterator[Sequence[int]]:
    """Token ids of one text after the other."""
    chance = random.Random(3)
    code = sorted((ROOT / "packages").glob("*/src/**/*.py"))
    chance.shuffle(code)
    if kind in ("code", "prose"):
        files = code if kind == "code" else sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("**/README.md")])
        for file in files:
            if ".venv" not in file.parts:
                yield engine.encode(file.read_text())
        return
    prompts: list[tuple[int, ...]] = []
    if kind == "chat":
        lines = [
            json.loads(line)
            for file in sorted((ROOT / "tools" / "pico" / "eval").glob("*.jsonl"))
            for line in file.read_text().splitlines()
        ]
        chance.shuffle(lines)
        prompts = [engine.render_chat(line["messages"], tools=line["tools"] or None) for line in lines]
    else:
        prompts = [engine.encode(file.read_text())[:24] for file in code]
    for number, prompt in enumerate(prompts):
        sampling = SamplingParams(temperature=0.7, seed=number)
        request = GenerationRequest(prompt=prompt, max_tokens=400, sampling=sampling)
        answer = [event.token for event in engine.generate(request) if event.token is not None]
        yield [*prompt, *answer]


def record(engine: Engine, kind: str, tokens: int, routes: Callable[[], Routes]) -> Routes:
    """Routes of about so many tokens of one kind of text."""
    parts: list[Routes] = []
    for text in texts(engine, kind):
        cache = engine.kv_caches.make()
        for first in range(0, min(len(text), CONTEXT), CHUNK):
            engine.model(mx.array([text[first : first + CHUNK]]), cache=cache)
            parts.append(routes())
        if sum(len(part.ids) for part in parts) >= tokens:
            break
    return Routes(*(np.concatenate(arrays)[:tokens] for arrays in zip(*parts, strict=True)))


class Optimum:
    """Belady's MIN in a policy's clothes: it knows the routes that come, and is told nothing else."""

    name, kept = "belady", frozenset[tuple[int, int]]()

    def __init__(self, ids: NDArray[np.uint16]) -> None:
        self._uses: dict[tuple[int, int], deque[int]] = {}
        for place, (token, layer) in enumerate(np.ndindex(*ids.shape[:2])):
            for expert in ids[token, layer].tolist():
                self._uses.setdefault((layer, expert), deque()).append(place)
        self._held: set[tuple[int, int]] = set()

    def insert(self, key: tuple[int, int]) -> None:
        """A key comes in."""
        self._held.add(key)
        self.touch(key)

    def touch(self, key: tuple[int, int]) -> None:
        """A key is used."""
        self._uses[key].popleft()

    def remove(self, key: tuple[int, int]) -> None:
        """A key leaves."""
        self._held.remove(key)

    def candidates(self, count: int, pinned: Any) -> list[tuple[int, int]]:
        """The farthest next uses first."""

        def distance(key: tuple[int, int]) -> float:
            return self._uses[key][0] if self._uses[key] else float("inf")

        return sorted(self._held.difference(pinned), key=distance, reverse=True)[:count]


class Replay:
    """A bank of `slots` slots, token by token; `hits` and `needed` after the warm-up."""

    def __init__(self, slots: int, policy: EvictionPolicy | Optimum) -> None:
        self.slots, self.policy = slots, policy
        self.held: set[tuple[int, int]] = set()
        self.hits = self.needed = 0

    def use(self, layer: int, experts: list[int], *, count: bool) -> set[int]:
        """One layer of one token; returns the missing experts."""
        held, policy = self.held, self.policy
        keys = [(layer, expert) for expert in experts]
        missing = [key for key in keys if key not in held]
        for key in keys:
            if key in held:
                policy.touch(key)
        room = self.slots - len(held)
        if len(missing) > room:
            for key in policy.candidates(len(missing) - room, set(keys)):
                policy.remove(key)
                held.remove(key)
        for key in missing:
            policy.insert(key)
            held.add(key)
        if count:
            self.hits += len(keys) - len(missing)
            self.needed += len(keys)
        return {expert for _, expert in missing}


def new_policy(name: str, ids: NDArray[np.uint16], experts: int, slots: int) -> EvictionPolicy | Optimum:
    """A policy by name, sized as the engine sizes it; or the optimum."""
    if name == Optimum.name:
        return Optimum(ids)
    layers = dict.fromkeys(range(ids.shape[1]), experts)
    return PoolShape(layers=layers, slots=slots, slot_bytes=1, top_k=ids.shape[2], policy=name).new_policy()


def hit_rate(name: str, ids: NDArray[np.uint16], experts: int, slots: int) -> tuple[float, float]:
    """Hit rate, and seconds a token."""
    replay = Replay(slots, new_policy(name, ids, experts, slots))
    began = time.perf_counter()
    for number, token in enumerate(ids.tolist()):
        for layer, chosen in enumerate(token):
            replay.use(layer, chosen, count=number >= WARM * len(ids))
    return replay.hits / replay.needed, (time.perf_counter() - began) / len(ids)


def guessed(how: str, routes: Routes, experts: int) -> float:
    """Precision, which is recall too, of as many guesses as a layer uses experts, whatever is in memory."""
    ids, (layers, k) = routes.ids, routes.ids.shape[1:]
    if how == "co-activation":
        predictor, right, of, guesses = ExpertPredictor(layers, experts), 0, 0, set[int]()
        for number, token in enumerate(ids.tolist()):
            for layer, chosen in enumerate(token):
                if number >= WARM * len(ids):
                    right, of = right + len(guesses.intersection(chosen)), of + k
                predictor.observe(layer, chosen)
                guesses = {expert for expert, _ in predictor.ranked(layer, chosen)[:k]}
        return right / of
    if how == "next router":
        named, used = routes.ahead[:, :, :k], ids[:, 1:]
    else:
        named, used = ids[:-1], ids[1:]
    return float((named[..., :, None] == used[..., None, :]).any(axis=-1).mean())


def predict(how: str, routes: Routes, experts: int, slots: int) -> dict[str, float]:
    """Reads proposed to a bank under the default policy: those used, and the part of the misses they are."""
    ids, layers = routes.ids, routes.ids.shape[1]
    replay = Replay(slots, new_policy("lookahead", ids, experts, slots))
    predictor = ExpertPredictor(layers, experts)
    given, proposed, right, misses = [], 0, 0, 0
    for number, token in enumerate(ids.tolist()):
        for layer, chosen in enumerate(token):
            missing = replay.use(layer, chosen, count=False)
            if number >= WARM * len(ids):
                proposed, right = proposed + len(given), right + len(missing.intersection(given))
                misses += len(missing)
            following = (layer + 1) % layers
            present = {expert for at, expert in replay.held if at == following}
            predictor.observe(layer, chosen)
            if how == "next router" and following:
                given = predictor.guess(layer, (), routes.ahead[number, layer].tolist(), present, ROOM)
            else:
                given = predictor.guess(layer, chosen, (), present, ROOM)
    return {"precision": right / max(1, proposed), "recall": right / misses}


def main() -> None:
    """Record, replay, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=20_000, help="of each kind of text")
    parser.add_argument("--csv", action="store_true")
    options = parser.parse_args()
    engine = Engine.load(EngineConfig(checkpoint="mach-pico"))
    experts = engine.model.model.layers[0].mlp.num_experts
    routes = watch_routers(engine)
    evictions: list[dict[str, object]] = []
    prefetches: list[dict[str, object]] = []
    for kind in ("code", "prose", "chat", "generated"):
        recorded = record(engine, kind, options.tokens, routes)
        common = {"text": kind, "tokens": len(recorded.ids)}
        for how in ("previous token", "co-activation", "next router"):
            rate = f"{guessed(how, recorded, experts):.3f}"
            prefetches.append({**common, "bank": "", "what": how, "precision": rate, "recall": rate})
        for size in SIZES:
            slots = round(size * experts * recorded.ids.shape[1])
            for name in (*POLICIES, Optimum.name):
                rate, seconds = hit_rate(name, recorded.ids, experts, slots)
                cost = f"{1e6 * seconds:.0f}" if name != Optimum.name else ""
                row = {"bank": size, "slots": slots, "policy": name, "hit_rate": f"{rate:.4f}"}
                evictions.append({**common, **row, "replay_us_per_token": cost})
            for how in ("co-activation", "next router"):
                found = predict(how, recorded, experts, slots)
                told = {key: f"{value:.3f}" for key, value in found.items()}
                prefetches.append({**common, "bank": size, "what": f"{how}, gated", **told})
        print(kind, "done", flush=True)
    for name, rows in (("eviction", evictions), ("prefetch", prefetches)):
        if options.csv:
            append_rows(name, rows, replacing=[], checkpoint="mach-pico")
        else:
            for row in rows:
                print(*row.values(), sep="\t")


if __name__ == "__main__":
    main()
