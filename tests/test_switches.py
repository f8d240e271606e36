"""Whatever is switched on or off, a bank of a quarter of the experts gives the tokens of a whole one."""

import itertools
from pathlib import Path

import mlx.core as mx
import pytest

from mach.io.checkpoint_path import resolve_checkpoint
from mach_decode.engine import Engine, EngineConfig
from mach_decode.request import GenerationRequest
from mach_store.bank_cache import BankCache
from mach_store.engine_checkpoint import write_stacked_checkpoint
from mach_store.eviction import POLICIES

PROMPT = "class Parser:\n    def __init__(self, text: str) -> None:\n        self.text = text\n"
BANK_GB = 0.006
DISPATCHES = {
    "the host is asked": {"LME_IN_GRAPH_DISPATCH": "0"},
    "within the graph": {"LME_ASYNC_PREFETCH": "0"},
    "within the graph, read ahead": {"LME_ASYNC_PREFETCH": "1"},
}
KERNELS = {"native kernels": {}, "stock operations": {"LME_CPU_KERNELS": "0"}}
RESIDENCIES = ("off", "pin,reclaim")


def tokens_of(engine: Engine, length: int) -> list[int]:
    tokens = []
    for text in (PROMPT, "def read(path):\n"):  # the second meets a bank that is full of the first's experts
        request = GenerationRequest(prompt=engine.encode(text), max_tokens=length)
        tokens += [event.token for event in engine.generate(request) if event.token is not None]
    return tokens


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """Tokens of the stacked model, computed by MLX's own operations."""
    directory = tmp_path_factory.mktemp("switches") / "stacked"
    write_stacked_checkpoint(Path(resolve_checkpoint("mach-pico")), directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LME_CPU_KERNELS", "0")
        engine = Engine.load(EngineConfig(checkpoint=str(directory), expert_residency="stacked"))
        tokens = tokens_of(engine, 40)
        engine.close()
    return tokens


@pytest.mark.skipif(mx.metal.is_available(), reason="compares what runs on the CPU")
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("policy", POLICIES)
def test_tokens_do_not_depend_on_switches(expected, monkeypatch, policy, kernels) -> None:
    for (dispatch, switches), residency in itertools.product(DISPATCHES.items(), RESIDENCIES):
        if kernels == "stock operations" and dispatch != "the host is asked":
            continue  # nothing but native kernels computes within the graph
        with monkeypatch.context() as patch:
            for name, value in {**KERNELS[kernels], **switches}.items():
                patch.setenv(name, value)
            patch.setenv("LME_BANK_EVICTION_POLICY", policy)
            patch.setenv("LME_DECODE_RESIDENCY", residency)
            engine = Engine.load(EngineConfig(checkpoint="mach-pico", expert_cache_gb=BANK_GB))
            assert tokens_of(engine, 40) == expected, (dispatch, residency)
            store = engine.store
            assert isinstance(store, BankCache)
            assert (engine.loaded.dispatch == "gather") == (dispatch == "the host is asked")
            assert (store.prefetch_refusal is None) == dispatch.endswith("read ahead")
            assert (store.totals().prefetched > 0) == dispatch.endswith("read ahead")
            assert store.totals().evictions > 0
            store.check()
            engine.close()
