"""Owns engines that are compared: each a process of its own, in its own setting, told when to run.

Processes wait while others run, so that every round compares like with like, whatever else the machine does;
and each has its own environment, its own peak of memory and, where asked for, its own limit of it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memory_limit import MemoryLimit

from mach_store import settings

CHILD = Path(__file__).with_name("contestant_child.py")
_SETTINGS = Path(settings.__file__).read_text()


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a contestant loads, and how.

    Attributes:
        checkpoint: a directory, or the name of an installed one (mach's engine alone).
        routes: file of recorded routes; its answers are also what prompts are made of.
        replay: the model's routes are replayed ones, because its own would be even.
        engine: `mach` or `mlx-lm`.
        residency: as `EngineConfig`'s.
        bank_gb: budget of the bank in 10⁹ bytes; None is as `EngineConfig`'s.
        prefill_chunk: as `EngineConfig`'s.
        temperature: of mach's answers; mach-pico's greedy ones soon repeat themselves, and so their routes.
        float32: mlx-lm computes in float32, its best setting on a CPU.
        lazy: mlx-lm loads weights when they are first used.
    """

    checkpoint: str
    routes: str
    replay: bool = False
    engine: str = "mach"
    residency: str = "streaming"
    bank_gb: float | None = None
    prefill_chunk: int | None = None
    temperature: float = 0.0
    float32: bool = True
    lazy: bool = False


class ContestantDiedError(Exception):
    """A contestant ended instead of answering; `status` as `Popen.returncode`: -9 is killed."""

    def __init__(self, name: str, status: int, stderr: str) -> None:
        """Args: stderr: the end of what it said."""
        super().__init__(f"{name}: ended with status {status}: {stderr.strip()[-500:]}")
        self.status = status


class Contestant:
    """An engine in a process of its own.

    Attributes:
        name: for tables.
        loaded: what the child said when it had loaded; a streaming one's `total_bytes` is what a bank for
            every expert takes.
    """

    def __init__(
        self,
        name: str,
        setting: Setting,
        environment: Mapping[str, str] | None = None,
        limit: MemoryLimit | None = None,
    ) -> None:
        """Start and load.

        Args:
            name: for tables.
            setting: what to load.
            environment: added to the process's.
            limit: memory that it may have.

        Raises:
            ContestantDiedError: it could not load.
        """
        unread = unread_variables(environment or {})
        assert not unread, f"mach-store has no {unread}: {name} would measure nothing"
        self.name = name
        self._stderr = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, str(CHILD), json.dumps(asdict(setting))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**os.environ, **(environment or {})},
            preexec_fn=limit.enter() if limit is not None else None,
        )
        self.loaded = self._hear()

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answer(self, *, prompt: int, tokens: int, number: int) -> dict[str, Any]:
        """Continue a recorded answer.

        Args:
            prompt: tokens of it to begin with.
            tokens: to generate.
            number: which answer, and the seed of what is drawn: the same for all contestants of a round.

        Returns:
            `decode_tps`, `prefill_tps`, `peak_bytes`; from mach also the counters of decoding alone.
        """
        return self._ask(do="answer", prompt=prompt, tokens=tokens, number=number)

    def fresh(self) -> dict[str, Any]:
        """Load again, so that the bank is empty."""
        return self._ask(do="fresh")

    def read(self, *, records: int, batch: int) -> float:
        """GB/s of the engine's own reader, bare, on random records, `batch` of a layer at a time."""
        return float(self._ask(do="read", records=records, batch=batch)["gb_s"])

    def read_plain(self, *, records: int, threads: int) -> float:
        """GB/s of random records past the page cache, `threads` at once, nothing done with them."""
        return float(self._ask(do="read_plain", records=records, threads=threads)["gb_s"])

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()
        self._stderr.close()

    def _ask(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died: hearing nothing says how
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait(60)
            self._stderr.seek(0)
            raise ContestantDiedError(self.name, status, self._stderr.read())
        told: dict[str, Any] = json.loads(line)
        return told


def unread_variables(environment: Mapping[str, str]) -> list[str]:
    """Those of the variables that mach-store does not read, so that setting them would show nothing."""
    return [variable for variable in environment if f'"{variable}"' not in _SETTINGS]


def share_gb(total_bytes: int, share: float) -> float:
    """The `bank_gb` of a bank with room for this share of the experts; never a byte less."""
    return (int(total_bytes * share) + 1) / 1e9


def alternate(
    contestants: Sequence[Contestant], rounds: int, *, prompt: int, tokens: int, warm_up: int = 1
) -> dict[str, list[dict[str, Any]]]:
    """Answers of every contestant, one a round, each round begun by another; warm-up rounds are dropped."""
    told: dict[str, list[dict[str, Any]]] = {contestant.name: [] for contestant in contestants}
    for number in range(-warm_up, rounds):
        for contestant in _rotated(contestants, number):
            answer = contestant.answer(prompt=prompt, tokens=tokens, number=number + warm_up)
            if number >= 0:
                told[contestant.name].append(answer)
    return told


def _rotated(contestants: Sequence[Contestant], number: int) -> Iterator[Contestant]:
    for place in range(len(contestants)):
        yield contestants[(place + number) % len(contestants)]


def median(answers: Iterable[Mapping[str, Any]], name: str) -> float:
    """The median of one figure."""
    return statistics.median(float(answer[name]) for answer in answers)


def ratios(answers: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """The rounds' own ratios of one figure: what the machine does besides changes from round to round."""
    return [float(answer[name]) / float(other[name]) for answer, other in zip(answers, base, strict=True)]


def spread(column: str, values: Sequence[float]) -> dict[str, str]:
    """The median, the least and the largest, as `column`, `column_low` and `column_high` of a table."""
    told = {
        column: statistics.median(values),
        f"{column}_low": min(values),
        f"{column}_high": max(values),
    }
    return {name: f"{value:.3f}" for name, value in told.items()}
