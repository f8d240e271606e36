"""A replayed trace has the hits and misses of the run that was recorded, whatever the bank and the policy."""

from pathlib import Path

import mlx.core as mx
import pytest

from mach.io.checkpoint_path import resolve_checkpoint
from mach_decode.engine import Engine, EngineConfig
from mach_decode.errors import GenerationCancelledError
from mach_decode.request import GenerationRequest
from mach_decode.sampling import SamplingParams
from mach_decode.trace_recorder import record_routes
from mach_store.engine_checkpoint import write_stacked_checkpoint
from mach_store.eviction import POLICIES
from mach_store.trace.bank_sizes import pool_slots
from mach_store.trace.trace_header import TraceHeader
from mach_store.trace.trace_replay import BELADY, TraceReplay, replay_trace

mx.set_default_device(mx.cpu)

PICO_SLOT = 122_880
EXPERTS = 192
PROMPTS = (
    "def reverse(s):",
    "class Stack:\n    def push(self, item):\n        self.items.append(item)\n\n    def pop(self):\n" * 4,
    "x",
    "import os\nimport sys\n\n\ndef main(arguments):\n    path = arguments[0]\n    with open(path) as f:\n",
)


def budget(slots: int) -> float:
    return (slots * PICO_SLOT + 0.5) / 1e9


def recorded(path: Path, *, tokens: int = 16, **fields) -> tuple[Engine, dict[str, float]]:
    """Record some answers; the closed engine, and its counters."""
    engine = Engine.load(EngineConfig(**{"checkpoint": "mach-pico"} | fields))
    try:
        recorder = record_routes(engine, str(path), "a test")
        for seed, text in enumerate(PROMPTS):
            request = GenerationRequest(
                prompt=engine.encode(text),
                max_tokens=tokens,
                sampling=SamplingParams(temperature=0.8, seed=seed),
            )
            for _ in engine.generate(request):
                pass
        recorder.finish()
        if hasattr(engine.store, "check"):
            engine.store.check()
        return engine, engine.store.totals().as_dict()
    finally:
        engine.close()


def recorded_size(header: TraceHeader) -> list[tuple[int, ...]]:
    return [tuple(header.run.bank_slots)]


def assert_equal(result: TraceReplay, counted: dict[str, float]) -> None:
    (bank,) = result.banks
    total = bank.tally.total
    assert (total.hits, total.misses) == (counted["hits"], counted["misses"])
    assert total.hit_rate == counted["hit_rate"]
    assert bank.tally.evictions == counted["evictions"]
    assert bank.tally.transient_reads == counted["transient_reads"]


@pytest.fixture(autouse=True)
def fence_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the replay models."""
    monkeypatch.setenv("LME_CPU_KERNELS", "0")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("slots", [EXPERTS // 8, EXPERTS // 4])
def test_the_replay_has_the_counts_of_the_run(tmp_path, monkeypatch, policy, slots) -> None:
    monkeypatch.setenv("LME_BANK_EVICTION_POLICY", policy)
    path = tmp_path / "run.trace"
    _, counted = recorded(path, expert_cache_gb=budget(slots))
    assert counted["misses"] > 0
    assert counted["transient_reads"] > 0
    result = replay_trace(str(path), [policy], recorded_size)
    assert (result.header.run.policy, result.header.run.bank_slots) == (policy, [slots])
    assert_equal(result, counted)
    best = replay_trace(str(path), [BELADY], recorded_size).banks[0].tally.total
    assert best.misses < counted["misses"]


def test_one_trace_has_the_counts_of_runs_with_other_banks(tmp_path, monkeypatch) -> None:
    """Routes do not depend on the bank, so a trace recorded once says what any other would have done."""
    # A whole bank would cut prompts into shorter passes.
    recorded(tmp_path / "whole.trace", prefill_chunk=512)
    for policy in POLICIES:
        monkeypatch.setenv("LME_BANK_EVICTION_POLICY", policy)
        _, counted = recorded(tmp_path / f"{policy}.trace", expert_cache_gb=budget(48))
        result = replay_trace(
            str(tmp_path / "whole.trace"), [policy], lambda header: [pool_slots(header, 0.25)]
        )
        assert result.banks[0].slots == (48,)
        assert_equal(result, counted)


def test_a_whole_bank_has_no_miss_in_both(tmp_path) -> None:
    path = tmp_path / "run.trace"
    _, counted = recorded(path)
    assert counted["misses"] == 0
    assert_equal(replay_trace(str(path), ["lru"], recorded_size), counted)


@pytest.mark.parametrize(
    "environment",
    [
        {"LME_TRANSIENT_MIN_TOKENS": "2"},
        {"LME_TRANSIENT_MIN_TOKENS": "4096"},
        {"LME_SCRATCH_EXPERTS": "1"},
    ],
    ids=str,
)
def test_the_rules_of_long_passes_are_the_engines(tmp_path, monkeypatch, environment) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "run.trace"
    _, counted = recorded(path, expert_cache_gb=budget(60), prefill_chunk=40)
    result = replay_trace(str(path), [result_policy(path)], recorded_size)
    assert_equal(result, counted)


def result_policy(path: Path) -> str:
    return replay_trace(str(path), [], recorded_size).header.run.policy


def test_a_narrow_bank_replays_too(tmp_path) -> None:
    """bf16_streaming on the CPU widens what it computes with, which bounds a pass."""
    stacked = tmp_path / "stacked"
    write_stacked_checkpoint(resolve_checkpoint("mach-pico"), stacked)
    path = tmp_path / "run.trace"
    engine, counted = recorded(
        path, tokens=6, checkpoint=str(stacked), expert_residency="bf16_streaming", expert_cache_gb=0.03
    )
    result = replay_trace(str(path), [result_policy(path)], recorded_size)
    assert result.header.run.narrow == [bank.pool.narrow for bank in engine.store.layers.values()][:1]
    assert_equal(result, counted)


def test_stacked_experts_record_what_streaming_records(tmp_path) -> None:
    stacked = tmp_path / "stacked"
    write_stacked_checkpoint(resolve_checkpoint("mach-pico"), stacked)
    recorded(tmp_path / "a.trace", checkpoint=str(stacked), expert_residency="stacked", prefill_chunk=512)
    recorded(tmp_path / "b.trace", expert_cache_gb=budget(48), prefill_chunk=512)
    results = [
        replay_trace(str(tmp_path / name), ["lru"], lambda header: [(48,)]) for name in ("a.trace", "b.trace")
    ]
    assert results[0].banks[0].tally.total == results[1].banks[0].tally.total


def test_an_answer_that_is_cancelled_between_steps_replays_too(tmp_path) -> None:
    path = tmp_path / "run.trace"
    engine = Engine.load(EngineConfig(checkpoint="mach-pico", expert_cache_gb=budget(48)))
    recorder = record_routes(engine, str(path), "a test")
    made: list[int | None] = []
    request = GenerationRequest(prompt=engine.encode(PROMPTS[1]), max_tokens=50)
    with pytest.raises(GenerationCancelledError):
        for event in engine.generate(request, lambda: len(made) >= 9):
            made.append(event.token)
    recorder.finish()
    counted = engine.store.totals().as_dict()
    engine.close()
    assert_equal(replay_trace(str(path), [result_policy(path)], recorded_size), counted)
