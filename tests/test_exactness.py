"""Streaming gives the tokens of a resident model: bank = mlx-lm, native = Python, CLI = library."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model

from mach.io.checkpoint_path import resolve_checkpoint
from mach.io.inspection import inspect_checkpoint
from mach.io.sidecar_layout import SidecarLayoutError
from mach_decode.engine import Engine, EngineConfig
from mach_decode.request import GenerationRequest
from mach_decode.sampling import SamplingParams
from mach_store.engine_checkpoint import write_stacked_checkpoint
from mach_store.expert_arrays import slot_bytes
from mach_store.sidecar.sidecar_source import SidecarSource
from mach_store.synthetic_checkpoint import qwen3_moe_config, write_synthetic_checkpoint

ROOT = Path(__file__).parent.parent
PROMPT = "def reverse(text):\n    '''The characters of text, last first.'''\n    "


@pytest.fixture(scope="module")
def pico() -> Path:
    return resolve_checkpoint("mach-pico")


@pytest.fixture(scope="module")
def stacked_pico(pico: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pico") / "stacked"
    write_stacked_checkpoint(pico, directory)
    return directory


def gigabytes(directory: Path, slots: int) -> float:
    source = SidecarSource(str(directory / "expert_sidecar"))
    size = max(slot_bytes(schema, mx.bfloat16) for schema in source.schemas.values())
    source.close()
    return (slots * size + 0.5) / 1e9


def mlx_lm_tokens(stacked: Path, prompt: tuple[int, ...], count: int) -> list[int]:
    model, _ = load_model(stacked)
    model.set_dtype(mx.float32)
    return [token for token, _ in generate_step(mx.array(prompt), model, max_tokens=count)]


def tokens_of(engine: Engine, prompt: tuple[int, ...], count: int, **fields) -> list[int]:
    tokens = []
    for event in engine.generate(GenerationRequest(prompt=prompt, max_tokens=count, **fields)):
        if engine.store.residency == "streaming":
            engine.store.check()
            assert engine.store.nbytes <= engine.store.budget_bytes
        if event.token is not None:
            tokens.append(event.token)
    return tokens


def test_the_reference_model_gives_mlx_lms_tokens_with_every_kind_of_bank(pico, stacked_pico) -> None:
    shape = inspect_checkpoint(pico).shape
    least, everything = shape.top_k * len(shape.moe_layers), shape.num_experts * len(shape.moe_layers)
    expected: list[int] = []
    for slots in (least, least + 1, everything // 2, everything - 1, everything):
        engine = Engine.load(EngineConfig(checkpoint=str(pico), expert_cache_gb=gigabytes(pico, slots)))
        assert engine.store.slots == slots
        prompt = engine.encode(PROMPT)
        expected = expected or mlx_lm_tokens(stacked_pico, prompt, 16)
        tokens = tokens_of(engine, prompt, 16)
        assert tokens == expected[: len(tokens)], slots
        assert len(tokens) == 16 or tokens[-1] in engine.end_tokens
        counters = engine.store.totals()
        assert counters.evictions > 0 or slots > least + 1, slots
        assert counters.evictions == 0 or slots < everything, slots
        engine.close()
    resident = Engine.load(EngineConfig(checkpoint=str(stacked_pico), expert_residency="stacked"))
    assert tokens_of(resident, prompt, 16) == tokens
    resident.close()


def test_a_small_model_gives_mlx_lms_tokens_with_every_bank_size_there_is(pico, tmp_path) -> None:
    config = qwen3_moe_config(experts=6)
    directory = tmp_path / "engine"
    write_synthetic_checkpoint(directory, config, tokenizer_from=pico, alignment=512)
    write_stacked_checkpoint(directory, tmp_path / "stacked")
    prompt = tuple(range(200, 240))
    expected = mlx_lm_tokens(tmp_path / "stacked", prompt, 12)
    for slots in range(4, 13):
        engine = Engine.load(
            EngineConfig(checkpoint=str(directory), expert_cache_gb=gigabytes(directory, slots))
        )
        assert engine.store.slots == slots
        assert tokens_of(engine, prompt, 12) == expected, slots
        engine.close()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_native_and_python_reads_give_the_same_tokens(pico, monkeypatch, temperature) -> None:
    shape = inspect_checkpoint(pico).shape
    budget = gigabytes(pico, shape.num_experts * len(shape.moe_layers) // 4)
    sampling = SamplingParams(temperature=temperature, seed=11)
    runs = []
    # The Python reader cannot read within a graph; what is evicted when differs a little there.
    monkeypatch.setenv("LME_IN_GRAPH_DISPATCH", "0")
    for native in (True, False):
        if not native:
            monkeypatch.setitem(sys.modules, "lme_mlx_pread_ext", None)
            monkeypatch.setenv("LME_FALLBACK_POLICY", "diagnostic-python")
        engine = Engine.load(EngineConfig(checkpoint=str(pico), expert_cache_gb=budget))
        assert engine.store.stats()["native_reader"] is native
        tokens = tokens_of(engine, engine.encode(PROMPT), 10, sampling=sampling)
        counters = engine.store.totals()
        runs.append((tokens, counters.hits, counters.misses, counters.evictions, counters.bytes_read))
        engine.close()
    assert runs[0] == runs[1]


def allows_direct_reads(directory: Path) -> bool:
    """Whether files there can be read past the page cache; tmpfs and some others refuse."""
    if not hasattr(os, "O_DIRECT"):
        return sys.platform == "darwin"  # F_NOCACHE is taken everywhere
    probe = directory / "probe"
    probe.write_bytes(bytes(4096))
    try:
        os.close(os.open(probe, os.O_RDONLY | os.O_DIRECT))
    except OSError as error:
        assert error.errno == errno.EINVAL, error
        return False
    finally:
        probe.unlink()
    return True


@pytest.fixture(scope="module")
def pico_on_a_disk(pico: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the reference checkpoint where direct reads work, if there is such a place."""
    with ExitStack() as made:
        for parent in (tmp_path_factory.getbasetemp(), Path("/var/tmp"), ROOT):
            if os.access(parent, os.W_OK):
                name = made.enter_context(TemporaryDirectory(prefix=".mach-direct-", dir=parent))
                if allows_direct_reads(Path(name)):
                    break
        yield Path(shutil.copytree(pico, Path(name) / "checkpoint"))


@pytest.mark.parametrize("part", [0.125, 0.5])
def test_direct_reads_give_the_tokens_of_stacked_experts_in_the_graph_and_at_the_fence(
    pico_on_a_disk, stacked_pico, monkeypatch, part
) -> None:
    shape = inspect_checkpoint(pico_on_a_disk).shape
    config = EngineConfig(
        checkpoint=str(pico_on_a_disk),
        expert_cache_gb=gigabytes(pico_on_a_disk, int(part * shape.num_experts * len(shape.moe_layers))),
    )
    if not allows_direct_reads(pico_on_a_disk):
        monkeypatch.setenv("LME_DIRECT_IO", "1")
        with pytest.raises(SidecarLayoutError, match="no direct reads, unset LME_DIRECT_IO"):
            Engine.load(config)
        return
    resident = Engine.load(EngineConfig(checkpoint=str(stacked_pico), expert_residency="stacked"))
    prompts = [resident.encode(text) for text in (PROMPT, "class Stack:", PROMPT * 3)]
    expected = [tokens_of(resident, prompt, 12) for prompt in prompts]
    resident.close()
    for in_graph, dispatch in (("1", "in-graph"), ("0", "gather")):
        monkeypatch.setenv("LME_IN_GRAPH_DISPATCH", in_graph)
        for direct in ("1", "0"):
            monkeypatch.setenv("LME_DIRECT_IO", direct)
            engine = Engine.load(config)
            assert engine.store.reader.direct is engine.loaded.direct.direct is (direct == "1")
            assert {layer["dispatch"] for layer in engine.store.stats()["layers"].values()} == {dispatch}
            if sys.platform == "linux":
                source = engine.store.source
                (fd,) = source.locate(shape.moe_layers[0], [0]).fds
                assert bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT) is (direct == "1")
            assert [tokens_of(engine, prompt, 12) for prompt in prompts] == expected, (dispatch, direct)
            assert engine.store.totals().evictions > 0
            engine.close()


@pytest.mark.parametrize("options", [[], ["--temperature", "0.8", "--seed", "42", "--top-p", "0.95"]])
def test_the_command_prints_what_the_library_gives(pico, options) -> None:
    command = [str(Path(sys.executable).parent / "mach-generate"), "mach-pico", "--prompt", PROMPT]
    result = subprocess.run(
        [*command, "--max-tokens", "12", *options], capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 0, result.stderr
    sampling = SamplingParams(temperature=0.8, seed=42, top_p=0.95) if options else SamplingParams()
    engine = Engine.load(EngineConfig(checkpoint="mach-pico"))
    if mx.metal.is_available():
        pytest.skip("the command ran on the GPU, this comparison on the CPU")
    request = GenerationRequest(prompt=engine.encode(PROMPT), max_tokens=12, sampling=sampling)
    assert result.stdout == "".join(event.text for event in engine.generate(request)) + "\n"
    engine.close()


@pytest.mark.parametrize("part", [1.0, 0.5])
def test_a_bank_that_is_resized_between_steps_gives_the_same_tokens(pico, part) -> None:
    shape = inspect_checkpoint(pico).shape
    slots = int(part * shape.num_experts * len(shape.moe_layers))
    engine = Engine.load(EngineConfig(checkpoint=str(pico), expert_cache_gb=gigabytes(pico, slots)))
    bank, prompt = engine.store, engine.encode(PROMPT)
    expected, declared = tokens_of(engine, prompt, 24), bank.budget_bytes
    for targets in ([0.5, 1.0], [0.0], [0.3, 0.9, 0.0, 1.0]):
        tokens, steps = [], 0
        for event in engine.generate(GenerationRequest(prompt=prompt, max_tokens=24)):
            bank.resize(int(targets[steps % len(targets)] * declared))
            bank.check()
            steps += 1
            if event.token is not None:
                tokens.append(event.token)
        assert tokens == expected, targets
    assert bank.stats()["experts_given_up"] > 0
    assert bank.resize(declared) <= declared
    assert tokens_of(engine, prompt, 24) == expected
    engine.close()
