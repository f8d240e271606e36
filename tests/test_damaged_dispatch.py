"""Damage met while decoding, in the graph and at the fence: an error naming the expert, then a whole bank."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import pytest

from mach.io.checkpoint_path import resolve_checkpoint
from mach.io.inspection import inspect_checkpoint
from mach.io.sidecar_layout import LayerFile, read_layout
from mach_decode.engine import Engine, EngineConfig
from mach_decode.request import GenerationRequest
from mach_store.bank_cache import BankCache
from mach_store.errors import ExpertReadError, SidecarCorruptionError
from mach_store.expert_arrays import slot_bytes

TOKENS = 6
DISPATCHES = {"1": "in-graph", "0": "gather"}


class Choice(NamedTuple):
    """Two prompts of one token, and an expert that only the first one's answer needs, from token `at` on.

    Nothing else that either answer needs of `layer` before that lies behind `expert` in the file.
    """

    needing: tuple[int, ...]
    free: tuple[int, ...]
    layer: int
    expert: int
    at: int


class Reference(NamedTuple):
    """What an undamaged engine gives for both prompts."""

    choice: Choice
    needing: list[int]
    free: list[int]


def given_by(engine: Engine, prompt: tuple[int, ...], given: list[int] | None = None) -> list[int]:
    """The answer's tokens, appended to `given` one by one."""
    given = [] if given is None else given
    for event in engine.generate(GenerationRequest(prompt=prompt, max_tokens=TOKENS)):
        if event.token is not None:
            given.append(event.token)
    return given


@pytest.fixture(scope="module")
def reference() -> Reference:
    """Prompts and an expert found by watching the routes of an engine with every expert in memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LME_IN_GRAPH_DISPATCH", "0")  # no pass is computed that gives no token
        engine = Engine.load(EngineConfig(checkpoint="mach-pico"))
    layers = sorted(engine.store.layers)
    engine.store.observe_routes(True)
    answers: dict[tuple[int, ...], tuple[list[int], list[dict[int, set[int]]]]] = {}
    for token in range(100, 140):
        tokens = given_by(engine, (token,))
        passes = engine.store.drain_routes()
        experts = [set(routed.ids.flatten().tolist()) for routed in passes]
        by_pass = [
            dict(zip(layers, experts[first : first + len(layers)], strict=True))
            for first in range(0, TOKENS * len(layers), len(layers))
        ]
        if len(tokens) == TOKENS and tokens[-1] not in engine.end_tokens:
            answers[token,] = tokens, by_pass
    engine.close()
    choice = next(found for free in answers for found in candidates(free, answers))
    return Reference(choice, answers[choice.needing][0], answers[choice.free][0])


def candidates(free: tuple[int, ...], answers: dict) -> Iterator[Choice]:
    """Experts of an answer's third or fourth pass that neither it before that nor `free` comes up to."""
    for needing, (_, passes) in answers.items():
        for at in (2, 3):
            for layer, experts in passes[at].items():
                others = (used[layer] for used in (*passes[:at], *answers[free][1]))
                if (expert := max(experts)) > max(map(max, others)):
                    yield Choice(needing, free, layer, expert, at)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the reference checkpoint that a test may damage."""
    return Path(shutil.copytree(resolve_checkpoint("mach-pico"), tmp_path / "checkpoint"))


@pytest.fixture(params=DISPATCHES, ids=DISPATCHES.values())
def open_engine(request, checkpoint, monkeypatch) -> Iterator[Callable[[float], Engine]]:
    """A function (part of all experts) → an engine with such a bank over the copy.

    Its passes of one token run as the parameter says; at the end that is checked.
    """
    monkeypatch.setenv("LME_IN_GRAPH_DISPATCH", request.param)
    fences, fence = [], BankCache.fence

    def counted(self: BankCache, indices: mx.array) -> list[int]:
        fences.append(indices.size)
        return fence(self, indices)

    monkeypatch.setattr(BankCache, "fence", counted)
    opened: list[Engine] = []

    def load(part: float) -> Engine:
        shape, layout = inspect_checkpoint(checkpoint).shape, read_layout(checkpoint / "expert_sidecar")
        slots = int(part * shape.num_experts) + 0.5
        gb = sum(slot_bytes(layer.schema, mx.bfloat16) for layer in layout.layers) * slots / 1e9
        opened.append(Engine.load(EngineConfig(checkpoint=str(checkpoint), expert_cache_gb=gb)))
        return opened[-1]

    yield load
    (engine,) = opened
    stats = engine.store.stats()
    assert not engine.store.whole
    assert {layer["dispatch"] for layer in stats["layers"].values()} == {DISPATCHES[request.param]}
    assert bool(fences) == (request.param == "0"), "who asks the host is who is said to"
    engine.close()


def damaged_layer(checkpoint: Path, choice: Choice) -> tuple[Path, LayerFile]:
    layer = next(r for r in read_layout(checkpoint / "expert_sidecar").layers if r.index == choice.layer)
    return checkpoint / "expert_sidecar" / layer.file, layer


@contextmanager
def corrupt(path: Path, layer: LayerFile, choice: Choice) -> Iterator[None]:
    """One bit of the expert's record is another one."""
    whole = path.read_bytes()
    at = choice.expert * layer.stride + layer.schema.nbytes // 2
    with open(path, "r+b") as handle:
        handle.seek(at)
        handle.write(bytes([whole[at] ^ 16]))
    yield
    with open(path, "r+b") as handle:
        handle.write(whole)


@contextmanager
def truncated(path: Path, layer: LayerFile, choice: Choice) -> Iterator[None]:
    """The file ends within the expert's record."""
    whole = path.read_bytes()
    os.truncate(path, choice.expert * layer.stride + layer.schema.nbytes - 1)
    yield
    with open(path, "r+b") as handle:
        handle.write(whole)


@pytest.mark.parametrize("part", [0.25, 0.75])
@pytest.mark.parametrize(
    ("damage", "error", "told"),
    [
        (corrupt, SidecarCorruptionError, "the bytes on disk do not match their checksum"),
        (truncated, ExpertReadError, "cannot be read: .*the file ended"),
    ],
)
def test_an_answer_stops_before_the_token_that_needs_a_damaged_record(
    reference, checkpoint, open_engine, damage, error, told, part
) -> None:
    choice = reference.choice
    path, layer = damaged_layer(checkpoint, choice)
    engine = open_engine(part)
    with damage(path, layer, choice):
        for _ in range(3):
            given: list[int] = []
            with pytest.raises(
                error, match=rf"{layer.file}: layer {choice.layer}, expert {choice.expert}: {told}"
            ) as caught:
                given_by(engine, choice.needing, given)
            assert (caught.value.path, caught.value.layer, caught.value.expert) == (
                str(path),
                choice.layer,
                choice.expert,
            )
            # A pass that was queued ahead may fail before the token that was made before it is given.
            assert given in (reference.needing[: choice.at], reference.needing[: choice.at - 1])
            whole_and_at_rest(engine, choice)
            assert given_by(engine, choice.free) == reference.free
            whole_and_at_rest(engine, choice)
    assert given_by(engine, choice.needing) == reference.needing, "a mended file serves again"
    engine.store.check()


def test_an_answer_stops_where_a_file_cannot_be_read_and_those_without_it_go_on(
    reference, checkpoint, open_engine, tmp_path
) -> None:
    choice = reference.choice
    path, layer = damaged_layer(checkpoint, choice)
    engine = open_engine(0.75)
    assert given_by(engine, choice.free) == reference.free
    (fd,) = engine.store.source.locate(choice.layer, [choice.expert]).fds
    kept, directory = os.dup(fd), os.open(tmp_path, os.O_RDONLY)
    os.dup2(directory, fd)
    for _ in range(3):
        given: list[int] = []
        with pytest.raises(
            ExpertReadError,
            match=rf"{layer.file}: layer {choice.layer}, expert \d+: cannot be read: .*Is a directory",
        ) as caught:
            given_by(engine, choice.needing, given)
        assert (caught.value.path, caught.value.layer) == (str(path), choice.layer)
        assert given == reference.needing[: len(given)] and len(given) <= choice.at
        whole_and_at_rest(engine, choice)
        assert given_by(engine, choice.free) == reference.free, "what is in memory needs no file"
        whole_and_at_rest(engine, choice)
    os.dup2(kept, fd)
    os.close(kept)
    os.close(directory)
    assert given_by(engine, choice.needing) == reference.needing
    engine.store.check()


def whole_and_at_rest(engine: Engine, choice: Choice) -> None:
    """The tables agree, nothing is pinned, and no slot is taken for what could not be read."""
    engine.store.check()
    assert all(not view.pool.pinned for view in engine.store.layers.values())
    assert (choice.layer, choice.expert) not in engine.store.layers[choice.layer].pool.table
