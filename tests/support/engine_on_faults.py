"""Owns a child process that answers prompts from a small bank on a failing disk, and checks all it gets.

    python engine_on_faults.py CHECKPOINT ROUNDS SEED [--twin] [--slow]

Every token that comes must be the right one, every failure an error that names file, layer and expert, and
the bank consistent after each answer. Prints a JSON object of counts. `--twin` reads with the Python reader.
With `--slow` the disk is sound, but every read is late: reads ahead are under way when they are needed, when
their slots are wanted for others, and when the bank changes its size.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter

from disk_faults import DiskFaults

from mach.errors import MachError
from mach_decode import store_opening
from mach_decode.engine import Engine, EngineConfig
from mach_decode.errors import GenerationCancelledError
from mach_decode.request import GenerationRequest
from mach_store.bank_cache import BankCache
from mach_store.errors import ExpertReadError, SidecarCorruptionError
from mach_store.scatter_reader import python_twin

TEXTS = (
    "import os",
    "class Stack:\n    def push(",
    "def add(a, b):\n",
    "\n".join(f"x{n} = {n} * {n}" for n in range(30)),  # a prefill that reads ahead
    '"""Numbers."""\n\n' + "def f(n):\n    return n\n\n\n" * 12,
)
TOKENS, SLOW_TOKENS = 6, 40

SLOW = ({"delays": 1000, "delay_us": 3000},)
FAULTS = (
    {"fails": 20},
    {"ends": 20},
    {"flips": 20},
    {"interrupts": 300, "shortened": 300},
    {"delays": 100, "delay_us": 2000},
    {"fails": 5, "ends": 5, "flips": 5, "interrupts": 100, "shortened": 100, "delays": 20, "delay_us": 1000},
    {"fails": 1000},
    {"flips": 1000},
    {},
)


def main() -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("rounds", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("--twin", action="store_true")
    parser.add_argument("--slow", action="store_true")
    options = parser.parse_args()
    length, gb, faulty = (SLOW_TOKENS, 0.007, SLOW) if options.slow else (TOKENS, 0.004, FAULTS)
    if options.twin:
        store_opening.open_reader = lambda settings: python_twin()
    faults, choice = DiskFaults.inherited(), random.Random(options.seed)
    engine = Engine.load(EngineConfig(checkpoint=options.checkpoint, expert_cache_gb=gb, prefill_chunk=64))
    prompts = [engine.encode(text) for text in TEXTS]
    expected = [answer(engine, prompt, length)[0] for prompt in prompts]
    counts: Counter[str] = Counter()
    for number in range(options.rounds):
        which = choice.randrange(len(prompts))
        faults.set(seed=options.seed * 1000 + number, **choice.choice(faulty))
        leave = choice.choice((None, None, None, choice.randint(1, 30)))
        tokens, outcome = answer(engine, prompts[which], length, leave)
        faults.set()
        counts[outcome] += 1
        assert tokens == expected[which][: len(tokens)], (which, tokens, expected[which])
        assert (outcome == "whole") == (len(tokens) == len(expected[which]))
        check(engine.store)
        if engine.store.resize_refusal is None and choice.random() < 0.3:
            engine.store.resize(choice.randint(engine.store.least_bytes, engine.store.declared_bytes))
            check(engine.store)
            counts["resized"] += 1
    for prompt, right in zip(prompts, expected, strict=True):
        assert answer(engine, prompt, length)[0] == right, "a sound disk brings everything back"
    check(engine.store)
    totals = engine.store.totals()
    counts.update(prefetched=totals.prefetched, prefetch_used=totals.prefetch_used)
    engine.close()
    print(json.dumps(counts))


def answer(
    engine: Engine, prompt: tuple[int, ...], length: int, leave: int | None = None
) -> tuple[list[int], str]:
    """Up to `length` tokens, and how it ended. Args: leave: after so many questions nobody wants the rest."""
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return leave is not None and asked > leave

    tokens: list[int] = []
    try:
        for event in engine.generate(GenerationRequest(prompt=prompt, max_tokens=length), cancelled):
            if event.token is not None:
                tokens.append(event.token)
    except GenerationCancelledError:
        return tokens, "cancelled"
    except (ExpertReadError, SidecarCorruptionError) as error:
        assert f"layer {error.layer}, expert {error.expert}" in str(error) and error.path in str(error)
        return tokens, "corrupt" if isinstance(error, SidecarCorruptionError) else "unreadable"
    except MachError as error:
        raise AssertionError("a disk's fault has its own errors") from error
    return tokens, "whole"


def check(store: BankCache) -> None:
    """Raise AssertionError when something is left in disorder."""
    store.check()
    assert all(not layer.pool.pinned for layer in store.layers.values()), "nothing is in use"


if __name__ == "__main__":
    main()
