"""Owns the replay of a trace through several policies and sizes of bank at once, beside the optimum."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mach_store.errors import BankSizeError
from mach_store.eviction import POLICIES
from mach_store.trace.bank_replay import BankReplay
from mach_store.trace.bank_sizes import all_experts, bank_bytes
from mach_store.trace.bank_tally import DECODE, PREFILL, BankTally, Phase
from mach_store.trace.belady import BeladyReplay
from mach_store.trace.layer_steps import LayerStep, layer_steps
from mach_store.trace.trace_events import AnswerBegan, Event, ModelPass
from mach_store.trace.trace_header import TraceEnding, TraceHeader
from mach_store.trace.trace_reader import TraceReader

BELADY = "belady"
REPLAYED = (*POLICIES, BELADY)
"""What a trace can be replayed through: the engine's policies, and the optimum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedBank:
    """What one bank made of a trace.

    Attributes:
        policy: one of REPLAYED.
        slots: of each pool.
        tally: the counts.
    """

    policy: str
    slots: tuple[int, ...]
    tally: BankTally


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceReplay:
    """A replayed trace.

    Attributes:
        path: the file.
        header: what it says of itself.
        ending: its last block, or None.
        loss: what is missing at its end; empty where nothing is.
        answers: that began.
        prefill_tokens: of all passes over prompts.
        decode_tokens: of all others.
        banks: in the order of policies, then sizes.
    """

    path: str
    header: TraceHeader
    ending: TraceEnding | None
    loss: str
    answers: int
    prefill_tokens: int
    decode_tokens: int
    banks: tuple[ReplayedBank, ...]

    def part(self, bank: ReplayedBank) -> float:
        """A bank's slots as a part of all experts, 0 to 1."""
        return sum(bank.slots) / all_experts(self.header)

    def decode_bytes_per_token(self, bank: ReplayedBank) -> float:
        """Bytes that a decoded token reads on average; 0 where none was decoded."""
        read = bank.tally.bytes_read(self.header.record_bytes, DECODE)
        return read / self.decode_tokens if self.decode_tokens else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        header = self.header
        return {
            "file": self.path,
            "complete": not self.loss,
            "loss": self.loss or None,
            "ended": self.ending.ended if self.ending else None,
            "architecture": header.architecture,
            "checkpoint": header.checkpoint,
            "fingerprint": header.fingerprint,
            "layers": header.layers,
            "experts": header.experts,
            "top_k": header.top_k,
            "recorded_by": header.run.recorded_by,
            "started": header.run.started,
            "residency": header.run.residency,
            "policy": header.run.policy or None,
            "bank_slots": header.run.bank_slots,
            "answers": self.answers,
            "prefill_tokens": self.prefill_tokens,
            "decode_tokens": self.decode_tokens,
            "banks": [self._bank_dict(bank) for bank in self.banks],
        }

    def _bank_dict(self, bank: ReplayedBank) -> dict[str, Any]:
        header, tally = self.header, bank.tally
        read = [tally.bytes_read(header.record_bytes, phase) for phase in (PREFILL, DECODE)]
        optimum = bank.policy == BELADY
        return {
            "policy": bank.policy,
            "slots": sum(bank.slots),
            "pool_slots": list(bank.slots),
            "part": self.part(bank),
            "bank_bytes": bank_bytes(header, bank.slots),
            **tally.total.as_dict(),
            "prefill": tally.phase(PREFILL).as_dict(),
            "decode": tally.phase(DECODE).as_dict(),
            "evictions": None if optimum else tally.evictions,
            "transient_reads": None if optimum else tally.transient_reads,
            "bytes_read": sum(read),
            "decode_bytes_per_token": self.decode_bytes_per_token(bank),
            "layers": {
                str(layer): Phase(sum(tally.hits[at]), sum(tally.misses[at])).as_dict()
                for at, layer in enumerate(header.layers)
            },
        }


def replay_trace(
    path: str,
    policies: Sequence[str],
    sizes: Callable[[TraceHeader], Sequence[tuple[int, ...]]],
    watch: Callable[[LayerStep], object] | None = None,
) -> TraceReplay:
    """Replay the trace in `path`, read once however many banks there are.

    Args:
        path: finished or broken off.
        policies: of REPLAYED.
        sizes: gives slots per pool, for each bank.
        watch: sees every step too.

    Raises:
        TraceFormatError: the file is no trace, or damaged.
        BankSizeError: a bank does not hold one token's experts.
    """
    with TraceReader(path) as reader:
        header, counts = reader.header, _Counts()
        wanted = list(sizes(header))
        for slots in wanted:
            _check(header, slots)
        optimum = BeladyReplay(header) if BELADY in policies else None
        replays = {
            (policy, slots): BankReplay(header, slots, policy)
            for policy in policies if policy != BELADY for slots in wanted
        }  # fmt: skip
        listeners: list[Callable[[LayerStep], object]] = [replay.step for replay in replays.values()]
        if optimum is not None:
            listeners.append(optimum.step)
        if watch is not None:
            listeners.append(watch)
        for step in layer_steps(counts.through(reader.events())):
            for listener in listeners:
                listener(step)
        banks = []
        for policy in policies:
            for slots in wanted:
                if policy == BELADY:
                    assert optimum is not None
                    tally = optimum.least_misses(slots)
                else:
                    tally = replays[policy, slots].tally
                banks.append(ReplayedBank(policy=policy, slots=slots, tally=tally))
        return TraceReplay(
            path=path,
            header=header,
            ending=reader.ending,
            loss=reader.loss,
            answers=counts.answers,
            prefill_tokens=counts.tokens[True],
            decode_tokens=counts.tokens[False],
            banks=tuple(banks),
        )


class _Counts:
    """Counts events as they go by."""

    def __init__(self) -> None:
        self.answers = 0
        self.tokens = {True: 0, False: 0}

    def through(self, events: Iterator[Event]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, ModelPass):
                self.tokens[event.prefill] += event.tokens
            else:
                self.answers += isinstance(event, AnswerBegan)
            yield event


def _check(header: TraceHeader, slots: Sequence[int]) -> None:
    for number, count in enumerate(slots):
        least = header.top_k * header.pools.count(number)
        if count < least:
            raise BankSizeError(f"pool {number} has {count} slots: one token needs {least}")
