"""The engine gives the reference's logits: golden data of transformers, in float32, for every family.

Checkpoints are written as published, sliced into the engine's form and loaded as a user's are. The data and
how it was made: tools/golden/README.md.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from golden_cases import CASES, CHUNK, GoldenCase, tokens_of
from golden_checkpoint import write_golden_checkpoint

from mach.io.arch_registry import REGISTRY
from mach.io.checkpoint_path import resolve_checkpoint
from mach.io.inspection import inspect_checkpoint
from mach_decode.engine import Engine, EngineConfig
from mach_decode.request import GenerationRequest
from mach_store.engine_checkpoint import write_stacked_checkpoint
from mach_store.expert_arrays import slot_bytes
from mach_store.prune.pruner import prune_checkpoint
from mach_store.sidecar.sidecar_source import SidecarSource

GOLDEN = Path(__file__).parent / "golden"
MANIFEST = json.loads((GOLDEN / "manifest.json").read_text())["cases"]
TOLERANCE = 1e-4
"""Largest error, relative to the largest logit of the prompt."""
SPLIT_TOLERANCE = 2e-5
"""The same between two ways through one model."""
LONGEST_SPLIT = 40
"""Prompts up to here are split at every point, longer ones around the boundaries that they are long for."""
BOUNDARIES = (16, 24, 32, 64, 128, 256)
"""Multiples of the sliding window, the chunk and the rates of compression."""

STORES = ("smallest bank", "whole bank", "stacked", "bf16_streaming")


@pytest.fixture(scope="module")
def engine_form(tmp_path_factory: pytest.TempPathFactory) -> Callable[[GoldenCase], Path]:
    """A function (case) → its checkpoint in the engine's layout, made once."""
    root = tmp_path_factory.mktemp("golden")

    def make(case: GoldenCase) -> Path:
        directory = root / case.name
        if not directory.exists():
            raw = root / f"{case.name}-raw"
            digest = write_golden_checkpoint(case, raw)
            assert digest == MANIFEST[case.name]["sha256"], (
                "golden data is of another checkpoint: make it again"
            )
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copyfile(resolve_checkpoint("mach-pico") / name, raw / name)
            prune_checkpoint(raw, directory)
        return directory

    return make


@pytest.fixture
def open_engine(engine_form: Callable[[GoldenCase], Path]) -> Iterator[Callable[..., Engine]]:
    """A function (case, store) → an engine that stops at no token, closed at the end."""
    made: list[Engine] = []

    def load(case: GoldenCase, store: str = "whole bank") -> Engine:
        directory, budget = engine_form(case), None
        if store in ("stacked", "bf16_streaming"):
            stacked = directory.with_name(f"{case.name}-stacked")
            if not stacked.exists():
                write_stacked_checkpoint(directory, stacked)
            directory = stacked
        elif store == "smallest bank":
            source = SidecarSource(str(directory / "expert_sidecar"))
            top_k = inspect_checkpoint(directory).shape.top_k
            budget = sum(top_k * slot_bytes(schema, mx.float32) for schema in source.schemas.values()) / 1e9
            source.close()
        residency = store if store in ("stacked", "bf16_streaming") else "streaming"
        engine = Engine.load(
            EngineConfig(
                checkpoint=str(directory),
                expert_residency=residency,
                expert_cache_gb=budget and budget + 1e-9,
                prefill_chunk=CHUNK,
            )
        )
        engine.end_tokens = frozenset()
        made.append(engine)
        return engine

    yield load
    for engine in made:
        engine.close()


def logits_of(engine: Engine, tokens: list[int], *ends: int) -> np.ndarray:
    """Logits [tokens, vocabulary], computed in passes that end at `ends` and at the end."""
    caches, parts, first = engine.kv_caches.make(), [], 0
    for end in (*ends, len(tokens)):
        parts.append(np.array(engine.model(mx.array([tokens[first:end]]), cache=caches)[0]))
        first = end
    return np.concatenate(parts)


def worst(logits: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    assert np.isfinite(logits).all()
    return float(np.abs(logits - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize(
    ("name", "store"),
    [
        (name, store)
        for name, case in CASES.items()
        for store in STORES
        if store in ("smallest bank", "whole bank") or REGISTRY[case.family].stacked_supported
    ],
)
def test_logits_and_greedy_tokens_are_the_references(
    name: str, store: str, open_engine: Callable[..., Engine], compatibility
) -> None:
    case = CASES[name]
    engine, data = open_engine(case, store), np.load(GOLDEN / f"{name}.npz")
    errors = []
    for prompt in MANIFEST[name]["prompts"]:
        length = prompt["length"]
        tokens, wanted = tokens_of(case, length), data[f"logits_{length}"]
        for ends in ((), range(CHUNK, length, CHUNK)):
            errors.append(worst(logits_of(engine, tokens, *ends)[prompt["positions"]], wanted))
            assert errors[-1] <= TOLERANCE, (length, ends)
        request = GenerationRequest(prompt=tuple(tokens), max_tokens=len(prompt["greedy"]))
        made = [event.token for event in engine.generate(request) if event.token is not None]
        assert len(made) == len(prompt["greedy"])
        for token, best, margin in zip(made, prompt["greedy"], prompt["margins"], strict=True):
            if token != best:  # a tie within the error; what follows is another continuation
                assert margin <= 2 * errors[-1] * prompt["scale"], (length, made)
                break
    print(f"max relative error {max(errors):.1e}")
    compatibility("golden logits", name, store, f"≤ {TOLERANCE:g}")


@pytest.mark.parametrize("name", CASES)
def test_a_prompt_split_anywhere_gives_the_logits_of_one_pass(
    name: str, open_engine: Callable[..., Engine]
) -> None:
    case = CASES[name]
    engine = open_engine(case)
    for length, _ in case.prompts:
        tokens = tokens_of(case, length)
        whole = logits_of(engine, tokens)
        near = [at + by for at in BOUNDARIES for by in (-1, 0, 1) if at + by < length]
        ways = [[split] for split in range(1, length)] if length <= LONGEST_SPLIT else [near]
        # Token by token: all of a short prompt, the end of a long one from before its last boundary.
        ways.append([*range(1 if length <= 2 * LONGEST_SPLIT else near[-3] - 2, length)])
        ways.append([*range(7, length, 7)])
        for ends in ways:
            assert worst(logits_of(engine, tokens, *ends), whole) <= SPLIT_TOLERANCE, (length, ends)


def test_the_golden_data_is_small_and_whole() -> None:
    assert MANIFEST.keys() == CASES.keys()
    assert {case.family for case in CASES.values()} == REGISTRY.keys()
    files = {path.name: path.stat().st_size for path in GOLDEN.iterdir()}
    assert files.keys() == {"manifest.json", *(f"{name}.npz" for name in CASES)}
    assert sum(files.values()) <= 5_000_000
