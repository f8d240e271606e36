"""What the engine forecasts for banks of other sizes on mach-pico is what such banks then do."""

import pytest

from mach.io.checkpoint_path import resolve_checkpoint
from mach_decode import bank_forecast
from mach_decode.engine import Engine, EngineConfig
from mach_decode.request import GenerationRequest
from mach_decode.sampling import SamplingParams
from mach_store.sidecar.sidecar_source import SidecarSource

PROMPTS = ("def reverse(s):", "What is the capital of France?", "import json\n")
SLOTS = 48  # a quarter of 6 × 32


def slot_gigabytes() -> float:
    """Of one expert in the bank, as the engine would have it."""
    source = SidecarSource(str(resolve_checkpoint("mach-pico") / "expert_sidecar"))
    records = len(source.schemas) * source.num_experts
    source.close()
    engine = Engine.load(EngineConfig(checkpoint="mach-pico"))
    try:
        return engine.store.nbytes / records / 1e9
    finally:
        engine.close()


def told_by(slots: int, gigabytes: float) -> dict:
    """The forecast of an engine with a bank of so many slots, after the same answers."""
    config = EngineConfig(checkpoint="mach-pico", expert_cache_gb=(slots + 0.5) * gigabytes)
    engine = Engine.load(config)
    try:
        assert engine.store.slots == slots
        engine.end_tokens = frozenset()
        for seed, prompt in enumerate(PROMPTS):
            sampling = SamplingParams(temperature=0.8, seed=seed)
            request = GenerationRequest(prompt=engine.encode(prompt), max_tokens=160, sampling=sampling)
            for _ in engine.generate(request):
                pass
        return engine.forecast.as_dict()
    finally:
        engine.close()


def test_the_hit_rates_forecast_are_those_that_banks_of_these_sizes_have(monkeypatch) -> None:
    """Within 0.03: what was measured has the first reads of every expert in it, the forecast has not."""
    monkeypatch.setattr(bank_forecast, "MOST_COST", 1e9)
    gigabytes = slot_gigabytes()
    forecast = told_by(SLOTS, gigabytes)
    assert forecast["sample_rate"] == 1.0
    for point in forecast["points"]:
        measured = told_by(point["bank_slots"], gigabytes)["measured_hit_rate"]
        assert point["hit_rate"] == pytest.approx(measured, abs=0.03), point
