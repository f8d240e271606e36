"""Runs one engine in one setting, and does what the lines of its standard input ask for.

    python tools/bench/contestant_child.py SETTING < commands

For contestants.py, which says what a setting and the commands are, a JSON object each. It answers every
command, and the load before the first one, with one line of JSON.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
from contestants import Setting
from mlx_lm import stream_generate
from mlx_lm.utils import load_model
from plain_reads import read_plain
from replayed_routes import RecordedRoutes, Replay

from mach_decode.engine import Engine, EngineConfig
from mach_decode.request import GenerationRequest
from mach_decode.sampling import SamplingParams
from mach_decode.tokenizer_loading import load_checkpoint_tokenizer
from mach_store.bank_cache import BankCache

Answer = dict[str, Any]
STRIDE = 331
"""Recorded positions between the routes of one answer and those of the next."""


class Mach:
    """mach's engine."""

    def __init__(self, setting: Setting) -> None:
        """Load."""
        self._setting = setting
        self._recorded = RecordedRoutes.load(Path(setting.routes)) if setting.replay else None
        self.loaded = self._load()

    def _load(self) -> Answer:
        """An engine with an empty bank, or a full one if everything fits."""
        setting = self._setting
        self.engine = Engine.load(
            EngineConfig(
                checkpoint=setting.checkpoint,
                expert_residency=setting.residency,
                expert_cache_gb=setting.bank_gb,
                prefill_chunk=setting.prefill_chunk,
            )
        )
        self.engine.end_tokens = frozenset()  # every answer is as long as was asked for
        self._replay = Replay(self.engine.model, self._recorded) if self._recorded is not None else None
        store = self.engine.store
        if not isinstance(store, BankCache):
            return {}
        return {
            "bank_bytes": store.nbytes,
            "total_bytes": store.total_bytes,
            "layers": len(store.layers),
            "whole": store.whole,
        }

    def fresh(self) -> Answer:
        """The same with a new bank."""
        self.engine.close()
        del self.engine, self._replay
        return self._load()

    def answer(self, prompt: list[int], tokens: int, number: int) -> Answer:
        """Continue `prompt`. Prefill is all before the first token; what is counted is decoding's alone."""
        if self._replay is not None:
            self._replay.seek(STRIDE * number)
        sampling = SamplingParams(temperature=self._setting.temperature, seed=number)
        request = GenerationRequest(prompt=tuple(prompt), max_tokens=tokens, sampling=sampling)
        store = self.engine.store
        began = before = store.totals()
        cpu = 0.0
        for event in self.engine.generate(request):
            if event.token is not None and cpu == 0.0:
                before, cpu = store.totals(), time.process_time()
            last = event
        cpu = time.process_time() - cpu
        after = store.totals()
        figures = last.figures
        assert figures is not None and figures.completion_tokens == tokens, "every answer has its length"
        steps = max(1, tokens - 1)
        return {
            "decode_tps": figures.decode_tokens_per_second,
            "decode_seconds": figures.decode_seconds,
            "prefill_tps": figures.prompt_tokens_per_second,
            "prefill_seconds": figures.first_token_seconds,
            "prefill_bytes": before.bytes_read - began.bytes_read,
            "cpu_seconds": cpu,
            "steps": steps,
            **{name: value - getattr(before, name) for name, value in asdict(after).items()},
        }

    def read(self, records: int, batch: int) -> Answer:
        """Read random records as this engine reads them, but without checks, conversions and look-ups.

        Args:
            records: how many.
            batch: how many of one layer at a time.
        """
        store = self.engine.store
        assert isinstance(store, BankCache), "only a streaming store reads records"
        reader, source = store.reader, store.source
        layers = sorted(store.layers)
        size = source.schemas[layers[0]].nbytes
        slots = mx.zeros((batch, size), mx.uint8)
        mx.eval(slots)
        plan = reader.plan([slots], [size], [False])
        dice = random.Random(0)
        done, seconds = 0, 0.0
        for turn in range(-4, records // batch):  # the first ones touch the pages
            where = source.locate(layers[turn % len(layers)], dice.sample(range(source.num_experts), batch))
            began = time.perf_counter()
            plan.read(range(batch), where.fds, where.offsets, threads=reader.threads, direct=reader.direct)
            if turn >= 0:
                done, seconds = done + batch, seconds + time.perf_counter() - began
        return {"gb_s": done * size / seconds / 1e9}

    def read_plain(self, records: int, threads: int) -> Answer:
        """Read random records past the page cache, as fast as the disk gives them."""
        source = self.engine.store.source
        layers = sorted(self.engine.store.layers)
        dice = random.Random()
        wanted = [(dice.choice(layers), dice.randrange(source.num_experts)) for _ in range(records)]
        size = source.schemas[layers[0]].nbytes
        size += -size % 4096  # what O_DIRECT asks for; records are padded to as much at least
        files = {layer: os.open(source.path_of(layer, 0, 0), os.O_RDONLY | os.O_DIRECT) for layer in layers}
        places = [(files[layer], source.locate(layer, [expert]).offsets[0]) for layer, expert in wanted]
        began = time.perf_counter()
        read_plain(places, size, threads)
        seconds = time.perf_counter() - began
        for fd in files.values():
            os.close(fd)
        return {"gb_s": records * size / seconds / 1e9}


class MlxLm:
    """mlx-lm's own model, and its own loop."""

    def __init__(self, setting: Setting) -> None:
        """Load; float32 activations are its best setting on a CPU."""
        directory = Path(setting.checkpoint)
        self._model, _ = load_model(directory, lazy=setting.lazy)
        if setting.float32:
            self._model.set_dtype(mx.float32)
        if not setting.lazy:
            mx.eval(self._model.parameters())
        self._tokenizer = load_checkpoint_tokenizer(directory)
        self._tokenizer.eos_token_ids = ()  # every answer is as long as was asked for
        self.loaded: Answer = {}
        recorded = RecordedRoutes.load(Path(setting.routes)) if setting.replay else None
        self._replay = Replay(self._model, recorded) if recorded is not None else None

    def answer(self, prompt: list[int], tokens: int, number: int) -> Answer:
        """Continue `prompt`."""
        if self._replay is not None:
            self._replay.seek(STRIDE * number)
        last = list(stream_generate(self._model, self._tokenizer, prompt, max_tokens=tokens))[-1]
        return {"decode_tps": last.generation_tps, "prefill_tps": last.prompt_tps}


def main(setting: Setting) -> None:
    """Load, then obey."""
    contestant: MlxLm | Mach
    contestant = MlxLm(setting) if setting.engine == "mlx-lm" else Mach(setting)
    recorded = RecordedRoutes.load(Path(setting.routes))
    say({**contestant.loaded, "peak_bytes": peak_bytes()})
    for line in sys.stdin:
        command = json.loads(line)
        what = command.pop("do")
        if what == "answer":
            number, length = command["number"], command.pop("prompt")
            answer = recorded.tokens[number % len(recorded.tokens)]
            prompt = [int(answer[place % len(answer)]) for place in range(length)]
            told = contestant.answer(prompt, **command)
        else:
            told = getattr(contestant, what)(**command)
        say({**told, "peak_bytes": peak_bytes()})


def peak_bytes() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def say(told: Answer) -> None:
    """One line for the parent."""
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(Setting(**json.loads(sys.argv[1])))
