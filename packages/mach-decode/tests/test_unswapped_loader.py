"""`--backend openai`: whatever mlx-lm has, as mlx-lm has it."""

import json
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm import load as mlx_lm_load
from mlx_lm.generate import generate_step

from mach.errors import CheckpointNotFoundError, ConfigError
from mach.preflight.memory_needs import LOADED_CONTEXT
from mach_decode import memory_refusal, unswapped_loader
from mach_decode.engine import UNSWAPPED, Engine, EngineConfig
from mach_decode.errors import DecodeError, ResidencyError, SamplingError
from mach_decode.loader import load, load_swapped
from mach_decode.request import GenerationRequest
from mach_decode.unswapped_loader import load_unswapped
from mach_store.errors import MemoryBudgetError
from mach_store.machine_memory import AvailableMemory
from mach_store.synthetic_dense import dense_config, write_dense_checkpoint
from mach_store.unswapped_experts import UnswappedExperts

DENSE = ("qwen3", "llama")


@pytest.fixture
def dense(pico, tmp_path):
    """A function (model_type, dtype, changes to config.json) → a random dense checkpoint."""

    def make(family: str = "qwen3", dtype: mx.Dtype = mx.bfloat16, **changes: object) -> Path:
        directory = tmp_path / "dense"
        config = dense_config(family)
        write_dense_checkpoint(directory, config, tokenizer_from=pico, dtype=dtype, seed=5)
        config = {name: value for name, value in (config | changes).items() if value is not None}
        (directory / "config.json").write_text(json.dumps(config))
        return directory

    return make


def mlx_lm_tokens(directory: Path, prompt: tuple[int, ...], count: int) -> list[int]:
    model, _ = mlx_lm_load(str(directory))
    model.set_dtype(mx.float32)
    return [token for token, _ in generate_step(mx.array(prompt), model, max_tokens=count)]


def tokens_of(engine: Engine, prompt: tuple[int, ...], count: int) -> list[int]:
    events = engine.generate(GenerationRequest(prompt=prompt, max_tokens=count))
    return [event.token for event in events if event.token is not None]


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("model_type", DENSE)
def test_a_dense_model_gives_mlx_lms_tokens(dense, model_type, dtype) -> None:
    directory = dense(model_type, dtype)
    engine = Engine.load(EngineConfig(checkpoint=str(directory), expert_residency=UNSWAPPED))
    prompt = engine.encode("def reverse(s):\n    return s[::-1]\n" * 8)
    assert len(prompt) > engine.prefill_chunk > 1, "the prompt takes more than one chunk"
    tokens = tokens_of(engine, prompt, 12)
    assert tokens == mlx_lm_tokens(directory, prompt, 12)[: len(tokens)]
    assert len(tokens) == 12 or tokens[-1] in engine.end_tokens
    assert {array.dtype for _, array in tree_flatten(engine.model.parameters())} == {mx.float32}
    engine.close()
    model, _ = load(str(directory))
    assert {array.dtype for _, array in tree_flatten(model.parameters())} == {dtype}


def test_the_facts_of_an_unregistered_model_are_those_of_its_config(dense) -> None:
    loaded = load_unswapped(str(dense()))
    assert (loaded.adapter, loaded.reader, loaded.sidecar_directory) == (None, None, None)
    assert (loaded.context_length, loaded.vocabulary_size, loaded.name) == (512, 8192, "dense")
    assert isinstance(loaded.store, UnswappedExperts)
    stats = loaded.store.stats()
    assert stats["residency"] == "unswapped"
    assert {value for name, value in stats.items() if name != "residency"} == {0}


@pytest.mark.parametrize(
    ("changes", "context"),
    [
        ({"max_position_embeddings": None}, LOADED_CONTEXT),
        ({"max_position_embeddings": None, "n_positions": 77}, 77),
        ({"text_config": {"max_position_embeddings": 33}}, 33),
        ({"max_sequence_length": "many"}, 512),
    ],
)
def test_the_context_is_found_under_the_names_that_families_give_it(dense, changes, context) -> None:
    # qwen3's own argument is not optional: llama's is.
    assert load_unswapped(str(dense("llama", **changes))).context_length == context


def test_an_engine_of_mlx_lms_own_model_counts_no_experts(dense) -> None:
    engine = Engine.load(EngineConfig(checkpoint=str(dense()), expert_residency=UNSWAPPED))
    *_, last = engine.generate(GenerationRequest(prompt=(5, 6, 7), max_tokens=3))
    assert (last.figures.expert_hits, last.figures.expert_misses, last.figures.bytes_read) == (0, 0, 0)
    assert last.figures.hit_rate == 0.0
    engine.close()


def test_a_mixture_of_experts_runs_with_mlx_lms_own_experts(stacked) -> None:
    engine = Engine.load(EngineConfig(checkpoint=str(stacked), expert_residency=UNSWAPPED))
    assert engine.loaded.adapter.model_type == "qwen3_moe"
    prompt = engine.encode("def reverse(s):")
    assert tokens_of(engine, prompt, 8) == mlx_lm_tokens(stacked, prompt, 8)
    engine.close()


def test_a_token_beyond_the_embedding_is_refused_whatever_config_json_says(dense, monkeypatch) -> None:
    """As where a model class reads another vocab_size than the nearest; MLX would read past the table."""
    directory = dense()
    rows = json.loads((directory / "config.json").read_text())["vocab_size"]
    monkeypatch.setattr(unswapped_loader, "_count", lambda parts, names, high: 2 * rows)
    engine = Engine.load(EngineConfig(checkpoint=str(directory), expert_residency=UNSWAPPED))
    assert engine.vocabulary_size == rows
    with pytest.raises(SamplingError, match=f"outside 0…{rows - 1}"):
        tokens_of(engine, (1, rows), 1)
    engine.close()


def test_a_sliced_checkpoint_is_refused(sliced) -> None:
    with pytest.raises(ResidencyError, match="--backend openai: its experts are in a sidecar.*--streaming"):
        load_unswapped(str(sliced))


def test_a_budget_and_settings_of_streaming_are_refused(stacked, monkeypatch) -> None:
    with pytest.raises(ResidencyError, match="cannot go with --backend openai"):
        Engine.load(EngineConfig(checkpoint=str(stacked), expert_residency=UNSWAPPED, expert_cache_gb=1.0))
    for name, value in (("LME_BF16_STACKED_STREAMING", "1"), ("LME_USE_GATHER_DISPATCH", "0")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(ResidencyError, match=f"{name}={value} goes with --streaming"):
                load_unswapped(str(stacked))


def test_what_mlx_lm_does_not_have_is_one_line(dense) -> None:
    for changes, why in (
        ({"model_type": "no_such_model"}, "Model type no_such_model not supported"),
        ({"hidden_size": 32}, "shape"),
        ({"model_file": "model.py"}, "trust"),
    ):
        with pytest.raises(DecodeError, match=f"mlx-lm cannot load it: .*{why}") as caught:
            load_unswapped(str(dense(**changes)))
        assert "\n" not in str(caught.value)


def test_bad_checkpoints_are_refused_before_mlx_lm_sees_them(dense, tmp_path, monkeypatch) -> None:
    directory = dense()
    monkeypatch.setattr(
        memory_refusal, "available_memory", lambda: AvailableMemory(100 << 20, "MemAvailable")
    )
    with pytest.raises(MemoryBudgetError, match=r"0.54 GB do not fit into 0.10 GB \(MemAvailable\)"):
        load_unswapped(str(directory))
    monkeypatch.undo()
    (directory / "config.json").write_text('{"model_type": 7}')
    with pytest.raises(ConfigError, match="model_type"):
        load_unswapped(str(directory))
    with pytest.raises(CheckpointNotFoundError):
        load_unswapped(str(tmp_path / "nowhere"))


def test_without_the_flag_the_error_names_it(dense) -> None:
    with pytest.raises(ConfigError, match="'qwen3' is not supported.*--backend openai"):
        load_swapped(str(dense()), expert_residency=None)
