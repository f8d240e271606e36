"""Routes recorded from mach-pico come back in a bigger model, and the benchmarks that replay them run."""

import csv
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from replayed_routes import RecordedRoutes, Replay

from mach.io.checkpoint_path import resolve_checkpoint
from mach_decode.engine import Engine, EngineConfig
from mach_decode.request import GenerationRequest
from mach_store.bank_cache import BankCache
from mach_store.synthetic_checkpoint import qwen3_moe_config, write_synthetic_checkpoint

BENCH = Path(__file__).parent.parent / "tools" / "bench"


def recorded(answers: int = 2, length: int = 12) -> RecordedRoutes:
    """Two answers of a model with 2 layers of 8 experts, top 2."""
    dice = np.random.default_rng(0)
    ids = np.argsort(dice.random((answers, 2, length, 8)), axis=-1)[..., :2]
    foretold = np.argsort(dice.random((answers, 1, length, 8)), axis=-1)
    return RecordedRoutes(
        np.zeros((answers, length), np.uint16), ids.astype(np.uint16), foretold.astype(np.uint16), 8
    )


def engine_of(tmp_path: Path, experts: int, top_k: int) -> Engine:
    config = qwen3_moe_config(layers=3, experts=experts, top_k=top_k)
    write_synthetic_checkpoint(tmp_path / "model", config, tokenizer_from=resolve_checkpoint("mach-pico"))
    return Engine.load(EngineConfig(checkpoint=str(tmp_path / "model")))


def test_a_bigger_model_takes_the_strongest_recorded_routes_of_its_streams(tmp_path: Path) -> None:
    routes, engine = recorded(), engine_of(tmp_path, experts=16, top_k=2)
    assert isinstance(engine.store, BankCache)
    replay = Replay(engine.model, routes)
    replay.seek(3)
    engine.store.observe_routes(True)
    list(engine.generate(GenerationRequest(prompt=(1, 2, 3), max_tokens=4)))
    seen: dict[int, list[set[int]]] = {0: [], 1: [], 2: []}
    for layer, ids in engine.store.drain_routes():
        seen[layer] += [set(row.tolist()) for row in ids]
    engine.close()
    for layer, tokens in seen.items():
        turn, source = divmod(layer, 2)
        # Nobody needs what the prompt's last layer computes: it may have been left out.
        assert len(tokens) in ((4, 6) if layer == 2 else (6,))
        for place, taken in enumerate(tokens, 3 + 6 - len(tokens)):
            first, second = (routes.ids[(s + turn) % 2, source, place % 12, 0] for s in range(2))
            assert taken == {int(first), 8 + int(second)}


def test_guesses_are_what_the_recorded_router_said_of_the_same_token(tmp_path: Path) -> None:
    routes, engine = recorded(), engine_of(tmp_path, experts=16, top_k=2)
    Replay(engine.model, routes).seek(5)
    first, second, third = (layer.mlp for layer in engine.model.model.layers)
    x = mx.ones((1, 2, first.gate._gate.weight.shape[-1] * 8))
    first.gate(x)
    scores = np.array(first.switch_mlp._dispatch.scores_of(x))[0]
    for place, row in enumerate(scores, 5):
        for stream in range(2):
            ranked = np.argsort(-row[8 * stream : 8 * stream + 8], kind="stable")
            assert ranked.tolist() == routes.foretold[stream, 0, place].tolist()
    # The recorded model's last layer foretells nothing; nor does this one's.
    assert second.switch_mlp._dispatch.scores_of is third.switch_mlp._dispatch.scores_of is None
    engine.close()


@pytest.mark.parametrize(("experts", "top_k"), [(12, 2), (24, 3), (16, 3)])
def test_models_that_the_routes_do_not_fit_are_refused(tmp_path: Path, experts: int, top_k: int) -> None:
    engine = engine_of(tmp_path, experts, top_k)
    with pytest.raises(ValueError, match=f"{experts} experts, top {top_k}"):
        Replay(engine.model, recorded())
    engine.close()


def test_recorded_routes_survive_their_file(tmp_path: Path) -> None:
    recorded().save(tmp_path / "routes.npz")
    again = RecordedRoutes.load(tmp_path / "routes.npz")
    assert np.array_equal(again.ids, recorded().ids)
    assert again.experts == 8


def test_a_benchmark_over_small_inputs_fills_its_file_and_replaces_its_rows(tmp_path: Path) -> None:
    inputs = ("--inputs", str(tmp_path / "inputs"))

    def run(*arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, str(BENCH / arguments[0]), *arguments[1:], *inputs],
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr

    run("bench_inputs.py", "--small")
    for _ in range(2):
        run("bench_bank.py", "--rounds", "1", "--tokens", "6", "--output", str(tmp_path))
    with open(tmp_path / "bank.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["bank_percent"] for row in rows] == ["100", "50", "50", "25", "25", "12.5", "12.5"]
    rates = [float(row["hit_rate"]) for row in rows[1::2]]
    assert 1 > rates[0] > rates[1] > rates[2] > 0
