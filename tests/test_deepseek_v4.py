"""DeepSeek-V4 from the engine layout, end to end: streaming = all experts in memory = the unswapped model."""

import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import httpx
import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model

from mach.io.arch_registry import REGISTRY
from mach.io.checkpoint_path import resolve_checkpoint
from mach_decode.engine import Engine, EngineConfig
from mach_decode.errors import DecodeError, ResidencyError
from mach_decode.loader import load_moe
from mach_decode.request import GenerationRequest
from mach_decode.v4_flash import load_v4_flash
from mach_store.engine_checkpoint import write_stacked_checkpoint
from mach_store.errors import SettingError
from mach_store.expert_arrays import slot_bytes
from mach_store.sidecar.sidecar_source import SidecarSource
from mach_store.synthetic_checkpoint import write_synthetic_checkpoint

CONFIG = json.loads((Path(__file__).parent / "configs" / "deepseek_v4.json").read_text())
COUNT = 20
PROMPT = tuple(range(200, 363))  # past the window, 40 entries of ratio 4 of which 8 are chosen, one of 128
LEAST = CONFIG["num_experts_per_tok"] * CONFIG["num_hidden_layers"]
PACKINGS = {
    "bfloat16": {},
    "affine": {"quantization": {"mode": "affine", "bits": 4, "group_size": 64}},
    "mxfp4": {"quantization": {"mode": "mxfp4", "bits": 4, "group_size": 32}},
}


@pytest.fixture(scope="module", params=PACKINGS)
def sliced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("v4") / "engine"
    pico = resolve_checkpoint("mach-pico")
    config = CONFIG | {"vocab_size": 8192} | PACKINGS[request.param]
    write_synthetic_checkpoint(directory, config, seed=4, tokenizer_from=pico, alignment=4096)
    path = str(directory / "model.safetensors")
    tensors = dict(mx.load(path)) | {
        "mtp.0.enorm.weight": mx.zeros((128,)),
        "mtp.0.x.weight": mx.zeros((4, 4)),
    }
    mx.eval(tensors)
    mx.save_safetensors(path, tensors, {"format": "mlx"})
    return directory


@pytest.fixture(scope="module")
def expected(sliced: Path, tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """What the model gives with its own experts modules, under mlx-lm's own loop."""
    stacked = tmp_path_factory.mktemp("v4") / "stacked"
    write_stacked_checkpoint(sliced, stacked)
    module = import_module(REGISTRY["deepseek_v4"].implementation)
    model, _ = load_model(stacked, get_model_classes=lambda config: (module.Model, module.ModelArgs))
    model.set_dtype(mx.float32)
    assert model.unbound == (2, 128 * 4 + 16 * 4)
    return [token for token, _ in generate_step(mx.array(PROMPT), model, max_tokens=COUNT)]


def gigabytes(directory: Path, slots: int) -> float:
    source = SidecarSource(str(directory / "expert_sidecar"))
    size = max(slot_bytes(schema, mx.bfloat16) for schema in source.schemas.values())
    source.close()
    return (slots * size + 0.5) / 1e9


@pytest.mark.parametrize(("slots", "chunk"), [(LEAST, 512), (LEAST, 50), (LEAST + 3, 1), (31, 50), (32, 512)])
def test_every_bank_and_chunk_gives_the_tokens_of_the_unswapped_model(sliced, expected, slots, chunk) -> None:
    engine = Engine.load(
        EngineConfig(checkpoint=str(sliced), expert_cache_gb=gigabytes(sliced, slots), prefill_chunk=chunk)
    )
    assert engine.store.slots == slots
    assert engine.end_tokens.isdisjoint(expected)
    request = GenerationRequest(prompt=PROMPT, max_tokens=COUNT)
    tokens = [event.token for event in engine.generate(request) if event.token is not None]
    engine.store.check()
    engine.close()
    assert tokens == expected
    assert len(set(tokens)) > 3


def test_load_v4_flash_gives_what_load_moe_gives_and_says_what_it_does_not_use(
    sliced, expected, capsys
) -> None:
    for load in (load_moe, load_v4_flash):
        model, tokenizer, store, cache = load(str(sliced), expert_cache_gb=gigabytes(sliced, LEAST))
        caches = cache.make()
        logits = model(mx.array([PROMPT]), cache=caches)
        assert logits[0, -1].argmax().item() == expected[0]
        assert tokenizer.encode("x")
        assert store.slots == LEAST
        store.close()
    assert "multi-token prediction are kept in the checkpoint and not used" in capsys.readouterr().err


def test_load_v4_flash_needs_the_engine_layout_of_deepseek_v4(sliced, tmp_path) -> None:
    with pytest.raises(DecodeError, match="is qwen3_moe, not deepseek_v4"):
        load_v4_flash("mach-pico")
    write_stacked_checkpoint(sliced, tmp_path / "stacked")
    with pytest.raises(ResidencyError, match=r"sliced engine layout, .* is stacked .*mach-prune"):
        load_v4_flash(str(tmp_path / "stacked"))
    lost = shutil.copytree(sliced, tmp_path / "lost", ignore=shutil.ignore_patterns("expert_sidecar"))
    with pytest.raises(ResidencyError, match="mach-prune"):
        load_v4_flash(str(lost))


@pytest.mark.parametrize("name", ["LME_V4_DRAFT", "LME_RHO_GATE", "LME_RHO_GATE_THRESHOLD"])
def test_a_draft_that_the_environment_asks_for_is_refused_by_name(sliced, monkeypatch, name) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingError, match=f"{name}='1': must be unset.*target-only"):
        load_v4_flash(str(sliced))
    with pytest.raises(SettingError, match=f"{name}='1'"):
        load_moe(str(sliced))


def test_variables_of_drafts_mean_nothing_to_other_families(monkeypatch) -> None:
    monkeypatch.setenv("LME_V4_DRAFT", "1")
    load_moe("mach-pico")[2].close()


def test_mach_generate_and_mach_serve_give_the_librarys_text(sliced) -> None:
    engine = Engine.load(EngineConfig(checkpoint=str(sliced)))
    words = "for i in range(10): print(i)"
    request = GenerationRequest(prompt=engine.encode(words), max_tokens=8)
    text = "".join(event.text for event in engine.generate(request))
    messages = [{"role": "user", "content": words}]
    request = GenerationRequest(prompt=engine.render_chat(messages), max_tokens=8)
    answer = "".join(event.text for event in engine.generate(request))
    engine.close()
    budget = ["--expert-cache-gb", str(gigabytes(sliced, LEAST))]
    programs = Path(sys.executable).parent
    run = subprocess.run(
        [programs / "mach-generate", sliced, "--prompt", words, "--max-tokens", "8", *budget],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (0, text + "\n"), run.stderr
    command = [programs / "mach-serve", sliced, "--streaming", "--port", "0", *budget]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            url = next(found[1] for line in server.stdout if (found := re.search(r"ready url=(\S+)", line)))
            body = {"model": "any", "messages": messages, "max_tokens": 8, "temperature": 0}
            body["model"] = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
            reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
        finally:
            server.terminate()
    assert reply.json()["choices"][0]["message"]["content"] == answer
