"""Random checkpoints with mach-pico's tokenizer, engines over them, and an engine that answers by script."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.utils import load_tokenizer

from mach.io.checkpoint_path import resolve_checkpoint
from mach_decode.engine import Engine, EngineConfig
from mach_store.counters import LayerCounters
from mach_store.engine_checkpoint import write_stacked_checkpoint
from mach_store.expert_arrays import slot_bytes
from mach_store.settings import StoreSettings
from mach_store.sidecar.sidecar_source import SidecarSource
from mach_store.synthetic_checkpoint import qwen3_moe_config, write_synthetic_checkpoint

# Exact comparisons hold on the CPU; a GPU's kernels change with the number of rows.
mx.set_default_device(mx.cpu)


@pytest.fixture(scope="session")
def pico() -> Path:
    """The installed reference checkpoint, for its tokenizer."""
    return resolve_checkpoint("mach-pico")


@pytest.fixture(scope="session")
def config() -> Callable[..., dict[str, Any]]:
    """A function (changed fields) → a tiny qwen3_moe config.json over mach-pico's vocabulary."""

    def make(**changes: Any) -> dict[str, Any]:
        return qwen3_moe_config(layers=3) | changes

    return make


@pytest.fixture(scope="session")
def sliced(tmp_path_factory: pytest.TempPathFactory, config: Callable[..., Any], pico: Path) -> Path:
    """A checkpoint with a sidecar; nobody writes into it."""
    directory = tmp_path_factory.mktemp("checkpoints") / "sliced"
    write_synthetic_checkpoint(directory, config(), seed=3, tokenizer_from=pico, alignment=4096)
    return directory


@pytest.fixture(scope="session")
def stacked(sliced: Path) -> Path:
    """The same with experts on axis 0."""
    directory = sliced.parent / "stacked"
    write_stacked_checkpoint(sliced, directory)
    return directory


@pytest.fixture
def copy_checkpoint(tmp_path: Path) -> Callable[[Path], Path]:
    """A function that copies a checkpoint to where a test may damage it."""

    def copy(directory: Path) -> Path:
        return Path(shutil.copytree(directory, tmp_path / "copy"))

    return copy


@pytest.fixture
def gigabytes() -> Callable[[Path, int], float]:
    """A function (checkpoint, slots) → the --expert-cache-gb that gives a bank of so many slots."""

    def budget(directory: Path, slots: int) -> float:
        source = SidecarSource(str(directory / "expert_sidecar"))
        size = max(slot_bytes(schema, mx.bfloat16) for schema in source.schemas.values())
        source.close()
        return (slots * size + 0.5) / 1e9

    return budget


@pytest.fixture
def open_engine(sliced: Path, gigabytes: Callable[[Path, int], float]) -> Iterator[Callable[..., Engine]]:
    """A function (slots or None for all, checkpoint, …) → Engine, closed at the end."""
    made: list[Engine] = []

    def make(slots: int | None = None, directory: Path = sliced, **fields: Any) -> Engine:
        if slots is not None:
            fields["expert_cache_gb"] = gigabytes(directory, slots)
        made.append(Engine.load(EngineConfig(checkpoint=str(directory), **fields)))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture(scope="session")
def tokenizer(pico: Path) -> Any:
    return load_tokenizer(pico)


class Position:
    """The cache of the scripted model: how many tokens it has seen."""

    def __init__(self) -> None:
        self.seen = 0
        self.state: list[mx.array] = []


class ScriptedModel:
    """Gives all its logits to the next token of `script`, whatever it is given."""

    def __init__(self, script: Sequence[int], prompt: int, vocabulary: int) -> None:
        self._script, self._prompt, self._vocabulary = list(script), prompt, vocabulary
        self.passes: list[int] = []

    def __call__(self, tokens: mx.array, cache: list[Position]) -> mx.array:
        length = tokens.shape[1]
        cache[0].seen += length
        self.passes.append(length)
        at = cache[0].seen - self._prompt
        token = self._script[at] if 0 <= at < len(self._script) else 0
        row = mx.where(mx.arange(self._vocabulary) == token, 10.0, 0.0) + 0.0 * tokens.sum()
        return mx.broadcast_to(row, (1, length, self._vocabulary))


@pytest.fixture(params=[False, True], ids=["fenced", "host-free"])
def scripted(request: pytest.FixtureRequest, tokenizer: Any) -> Callable[..., Engine]:
    """A function (script, prompt length, …) → an Engine whose model answers with the script's tokens."""

    def make(
        script: Sequence[int],
        *,
        prompt: int = 1,
        context_length: int = 512,
        end_tokens: Sequence[int] = (),
        prefill_chunk: int = 512,
    ) -> Engine:
        vocabulary = len(tokenizer)
        store = SimpleNamespace(
            totals=LayerCounters,
            host_free=request.param,
            decodes_ahead=request.param,
            sync=lambda: None,
            quiesce=lambda: None,
            begin_decoding=lambda: None,
            abandon=lambda: None,
            cancelled=None,
        )
        loaded = SimpleNamespace(
            model=ScriptedModel(script, prompt, vocabulary),
            tokenizer=tokenizer,
            store=store,
            cache=SimpleNamespace(make=lambda: [Position()], evaluate=lambda caches: None),
            context_length=context_length,
            vocabulary_size=vocabulary,
            plan=SimpleNamespace(tokens=context_length, kv=0),
            kv_bytes=None,
            directory=Path("scripted"),
            dispatch="gather",
            settings=StoreSettings(),
        )
        engine = Engine(loaded, prefill_chunk=prefill_chunk)
        engine.end_tokens = frozenset(end_tokens)
        return engine

    return make
