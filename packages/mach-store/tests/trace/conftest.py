"""Headers, events and small traces."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mach_store.trace.trace_events import AnswerBegan, AnswerEnded, Event, ModelPass
from mach_store.trace.trace_header import TraceHeader, TraceRun
from mach_store.trace.trace_reader import TraceReader
from mach_store.trace.trace_writer import TraceWriter


def make_header(**changes: Any) -> TraceHeader:
    layers = changes.get("layers", [1, 2, 5])
    run = TraceRun(
        recorded_by="a test", started="2026-11-21T19:00:00+00:00", versions={"mach-store": "0"},
        residency="streaming", dispatch="gather", policy="lru", bank_slots=[], transient_min_tokens=4,
        scratch_experts=16, narrow=[],
    )  # fmt: skip
    fields: dict[str, Any] = {
        "architecture": "qwen3_moe", "checkpoint": "small", "fingerprint": "f" * 64, "layers": layers,
        "experts": 8, "top_k": 2, "record_bytes": [4096] * len(layers), "slot_bytes": [4608] * len(layers),
        "pools": [0] * len(layers), "run": run,
    }  # fmt: skip
    return TraceHeader(**fields | changes)


def make_pass(header: TraceHeader, tokens: int, seed: int, *, layers: int | None = None) -> ModelPass:
    random = np.random.default_rng(seed)
    count = len(header.layers) if layers is None else layers
    ids = [
        np.stack([
            np.sort(random.choice(header.experts, header.top_k, replace=False)) for _ in range(tokens)
        ]).astype(np.uint16)
        for _ in range(count)
    ]  # fmt: skip
    return ModelPass(tokens > 1, ids)


def plain(event: Event) -> Any:
    """An event as something that compares."""
    if isinstance(event, ModelPass):
        return ("pass", event.prefill, [np.sort(ids, axis=1).tolist() for ids in event.ids])
    return event


@pytest.fixture(name="make_header", scope="session")
def _make_header() -> Callable[..., TraceHeader]:
    return make_header


@pytest.fixture(name="make_pass", scope="session")
def _make_pass() -> Callable[..., ModelPass]:
    return make_pass


@pytest.fixture(name="plain", scope="session")
def _plain() -> Callable[[Event], Any]:
    return plain


@pytest.fixture
def some_events() -> list[Event]:
    """Two answers, the second broken off within a pass, for the plain header."""
    header = make_header()
    return [
        AnswerBegan(6), make_pass(header, 5, 1), make_pass(header, 1, 2), make_pass(header, 1, 3),
        AnswerEnded(True),
        AnswerBegan(1), make_pass(header, 1, 4), make_pass(header, 1, 5, layers=2), AnswerEnded(False),
    ]  # fmt: skip


@pytest.fixture
def small_trace(tmp_path: Path, some_events: list[Event]) -> Path:
    """A finished trace of four blocks: header, two of events, ending."""
    path = tmp_path / "small.trace"
    writer = TraceWriter(str(path), make_header())
    for at, event in enumerate(some_events):
        writer.add(event)
        if at == 4:
            writer.flush()
    writer.finish()
    return path


@pytest.fixture
def read() -> Callable[[Path], tuple[list[Any], TraceReader]]:
    """A function (path) → its events as something that compares, and the reader at its end."""

    def all_of(path: Path) -> tuple[list[Any], TraceReader]:
        with TraceReader(str(path)) as reader:
            return [plain(event) for event in reader.events()], reader

    return all_of


@pytest.fixture
def header_json() -> Callable[..., bytes]:
    """A function (changed fields) → a header's JSON, whatever it says."""

    def make(**changes: Any) -> bytes:
        return msgspec.json.encode(msgspec.to_builtins(make_header()) | changes)

    return make
