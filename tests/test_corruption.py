"""A damaged sidecar never yields a token: loading or the answer stops, with file, layer and expert named."""

import json
import os
import re
import shutil
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import mlx.core as mx
import pytest

from mach.commands.process import run_command
from mach.errors import MachError
from mach.io.checkpoint_path import resolve_checkpoint
from mach.io.inspection import inspect_checkpoint
from mach.io.sidecar_layout import SidecarLayoutError, read_layout
from mach_decode.engine import Engine, EngineConfig
from mach_decode.request import GenerationRequest
from mach_store.errors import SidecarCorruptionError
from mach_store.expert_arrays import slot_bytes

ROOT = Path(__file__).parent.parent
PROMPT = "def add(a, b):\n"


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A copy of the reference checkpoint that a test may damage."""
    return Path(shutil.copytree(resolve_checkpoint("mach-pico"), tmp_path / "checkpoint"))


@pytest.fixture
def small_bank(checkpoint) -> float:
    """The --expert-cache-gb that holds one token's experts and no more."""
    shape = inspect_checkpoint(checkpoint).shape
    layout = read_layout(checkpoint / "expert_sidecar")
    return sum(slot_bytes(layer.schema, mx.bfloat16) for layer in layout.layers) * (shape.top_k + 0.5) / 1e9


@pytest.fixture
def verify(capsys) -> Callable[[Path], tuple[int, str]]:
    """`tools/export_expert_sidecar.py --verify`: a function (directory) → status, everything it printed."""
    spec = spec_from_file_location("export_expert_sidecar", ROOT / "tools" / "export_expert_sidecar.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(directory: Path) -> tuple[int, str]:
        status = run_command("export_expert_sidecar", module.main, ["--verify", str(directory)])
        out, err = capsys.readouterr()
        return status, out + err

    return run


def flip(path: Path, at: int, bit: int = 3) -> None:
    with open(path, "r+b") as handle:
        handle.seek(at)
        byte = handle.read(1)[0]
        handle.seek(at)
        handle.write(bytes([byte ^ (1 << bit)]))


def change_layout(checkpoint: Path, change) -> None:
    path = checkpoint / "expert_sidecar" / "layout.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


def tokens_of(engine: Engine, prompt: tuple[int, ...], count: int = 4) -> list[int]:
    events = engine.generate(GenerationRequest(prompt=prompt, max_tokens=count))
    return [event.token for event in events if event.token is not None]


def test_an_intact_sidecar_verifies(checkpoint, verify) -> None:
    status, text = verify(checkpoint / "expert_sidecar")
    assert (status, text) == (0, f"{checkpoint / 'expert_sidecar'}: intact\n")


@pytest.mark.parametrize("segment", ["first byte", "scales", "last byte"])
def test_a_flipped_bit_anywhere_in_a_record_stops_what_needs_it(
    checkpoint, small_bank, verify, segment
) -> None:
    layer = read_layout(checkpoint / "expert_sidecar").layers[2]
    path = checkpoint / "expert_sidecar" / layer.file
    scales = next(s for s in layer.schema.segments if s.name == "up_proj.scales")
    within = {"first byte": 0, "scales": scales.offset + 1, "last byte": layer.schema.nbytes - 1}[segment]
    clean = Engine.load(EngineConfig(checkpoint="mach-pico"))
    prompts = [
        clean.encode(text) for text in ("import os", "class A:", "x = [1, 2", "the", "\n\n\n", "def f(")
    ]
    expected = [tokens_of(clean, prompt) for prompt in prompts]
    clean.close()
    # Half of the layer's experts: most prompts need one of them, and some pass of each can be answered.
    bad = set(range(0, layer.num_experts, 2))
    for expert in bad:
        flip(path, expert * layer.stride + within)
    engine = Engine.load(EngineConfig(checkpoint=str(checkpoint), expert_cache_gb=small_bank))
    stopped = 0
    for prompt, answer in zip(prompts, expected, strict=True):
        given = []
        try:
            for event in engine.generate(GenerationRequest(prompt=prompt, max_tokens=4)):
                if event.token is not None:
                    given.append(event.token)
        except SidecarCorruptionError as error:
            stopped += 1
            assert error.layer == layer.index
            assert error.expert in bad
            assert error.path == str(path)
            assert re.search(
                rf"{layer.file}: layer {layer.index}, expert {error.expert}: .*export", str(error)
            )
        assert given == answer[: len(given)], "every token given is the right one"
        engine.store.check()
        assert all(not view.pool.pinned for view in engine.store.layers.values())
    assert stopped > 0
    engine.close()
    status, text = verify(checkpoint / "expert_sidecar")
    assert status == 1
    assert text.count("checksum does not match") == len(bad)
    assert f"{path}: layer {layer.index}, expert 0: checksum does not match" in text
    assert f"{checkpoint / 'expert_sidecar'}: corrupt\n" in text


def test_a_bank_that_holds_everything_refuses_to_load_a_flipped_bit(checkpoint) -> None:
    layer = read_layout(checkpoint / "expert_sidecar").layers[0]
    flip(checkpoint / "expert_sidecar" / layer.file, 5 * layer.stride + 17)
    with pytest.raises(SidecarCorruptionError, match=rf"{layer.file}: layer {layer.index}, expert 5"):
        Engine.load(EngineConfig(checkpoint=str(checkpoint)))


def test_a_bit_that_flips_while_serving_is_found_at_the_next_read(checkpoint, small_bank) -> None:
    engine = Engine.load(EngineConfig(checkpoint=str(checkpoint), expert_cache_gb=small_bank))
    prompt = engine.encode(PROMPT)
    before = tokens_of(engine, prompt)
    for layer in read_layout(checkpoint / "expert_sidecar").layers:
        for expert in range(layer.num_experts):
            flip(checkpoint / "expert_sidecar" / layer.file, expert * layer.stride)
    with pytest.raises(SidecarCorruptionError):
        tokens_of(engine, engine.encode("class Another:\n    pass\n"))
    engine.store.check()
    for layer in read_layout(checkpoint / "expert_sidecar").layers:
        for expert in range(layer.num_experts):
            flip(checkpoint / "expert_sidecar" / layer.file, expert * layer.stride)
    assert tokens_of(engine, prompt) == before
    engine.close()


def test_a_file_that_shrinks_while_serving_is_an_error_that_names_it(checkpoint, small_bank) -> None:
    engine = Engine.load(EngineConfig(checkpoint=str(checkpoint), expert_cache_gb=small_bank))
    layer = read_layout(checkpoint / "expert_sidecar").layers[0]
    os.truncate(checkpoint / "expert_sidecar" / layer.file, 10)
    with pytest.raises(MachError, match=rf"{layer.file}: layer {layer.index}, expert \d+: cannot be read"):
        tokens_of(engine, engine.encode(PROMPT))
    engine.store.check()
    engine.close()


def truncated(checkpoint: Path) -> str:
    layer = read_layout(checkpoint / "expert_sidecar").layers[1]
    os.truncate(checkpoint / "expert_sidecar" / layer.file, 3 * layer.stride + 1)
    return rf"{layer.file}: truncated: .* layer {layer.index}, expert 3 and those after it are incomplete"


def lengthened(checkpoint: Path) -> str:
    layer = read_layout(checkpoint / "expert_sidecar").layers[1]
    os.truncate(checkpoint / "expert_sidecar" / layer.file, layer.file_bytes + 1)
    return rf"{layer.file}: .* do not belong together"


def without_a_file(checkpoint: Path) -> str:
    layer = read_layout(checkpoint / "expert_sidecar").layers[1]
    (checkpoint / "expert_sidecar" / layer.file).unlink()
    return rf"{layer.file}: layer {layer.index} is declared in layout.json but cannot be opened"


def of_another_version(checkpoint: Path) -> str:
    change_layout(checkpoint, lambda document: document.update(version=2))
    return r"layout.json: schema is .* version 2; this release reads .* export the sidecar again"


def of_another_magic(checkpoint: Path) -> str:
    change_layout(checkpoint, lambda document: document.update(magic="SOMETHING"))
    return "layout.json: magic is not 'LME-EXPERT-SIDECAR'"


def without_a_checksum(checkpoint: Path) -> str:
    change_layout(checkpoint, lambda document: document["layers"][1]["checksums"].pop())
    return r"layout.json: layers\[1\].checksums has \d+ entries for \d+ experts"


def with_a_checksum_too_large(checkpoint: Path) -> str:
    change_layout(checkpoint, lambda document: document["layers"][1]["checksums"].__setitem__(0, 1 << 32))
    return r"layout.json: layers\[1\].checksums holds a value"


def not_json(checkpoint: Path) -> str:
    (checkpoint / "expert_sidecar" / "layout.json").write_bytes(b"\xff{]")
    return r"layout.json: not valid JSON .* export the sidecar again"


def cut_off(checkpoint: Path) -> str:
    path = checkpoint / "expert_sidecar" / "layout.json"
    path.write_bytes(path.read_bytes()[:-100])
    return r"layout.json: not valid JSON .* export the sidecar again"


def empty(checkpoint: Path) -> str:
    (checkpoint / "expert_sidecar" / "layout.json").write_bytes(b"")
    return r"layout.json: not valid JSON .* export the sidecar again"


@pytest.mark.parametrize(
    ("damage", "status"),
    [
        (truncated, 1),
        (lengthened, 1),
        (without_a_file, 1),
        (of_another_version, 2),
        (of_another_magic, 2),
        (without_a_checksum, 2),
        (with_a_checksum_too_large, 2),
        (not_json, 2),
        (cut_off, 2),
        (empty, 2),
    ],
)
def test_what_cannot_be_a_whole_sidecar_is_refused_at_the_door(checkpoint, verify, damage, status) -> None:
    message = damage(checkpoint)
    with pytest.raises(SidecarLayoutError, match=message):
        Engine.load(EngineConfig(checkpoint=str(checkpoint)))
    found, text = verify(checkpoint / "expert_sidecar")
    assert found == status
    assert "Traceback" not in text
    assert text.count("\n") == (2 if status == 1 else 1)


def test_a_layer_that_the_layout_does_not_declare_is_refused(checkpoint) -> None:
    change_layout(checkpoint, lambda document: document["layers"].pop(1))
    with pytest.raises(SidecarLayoutError, match="other layers than config.json, first layer 1: export"):
        Engine.load(EngineConfig(checkpoint=str(checkpoint)))


def test_two_layers_exchanged_are_refused(checkpoint, small_bank) -> None:
    sidecar = checkpoint / "expert_sidecar"
    os.rename(sidecar / "layer_00.bin", sidecar / "x")
    os.rename(sidecar / "layer_01.bin", sidecar / "layer_00.bin")
    os.rename(sidecar / "x", sidecar / "layer_01.bin")
    engine = Engine.load(EngineConfig(checkpoint=str(checkpoint), expert_cache_gb=small_bank))
    with pytest.raises(SidecarCorruptionError, match=r"layer_00.bin: layer 0, expert \d+"):
        tokens_of(engine, engine.encode(PROMPT))
    engine.close()


def test_only_whoever_turns_verification_off_reads_without_it(checkpoint, small_bank, monkeypatch) -> None:
    for layer in read_layout(checkpoint / "expert_sidecar").layers:
        for expert in range(layer.num_experts):
            flip(checkpoint / "expert_sidecar" / layer.file, expert * layer.stride)
    monkeypatch.setenv("LME_VERIFY_READS", "0")
    engine = Engine.load(EngineConfig(checkpoint=str(checkpoint), expert_cache_gb=small_bank))
    assert len(tokens_of(engine, engine.encode(PROMPT), 2)) > 0
    engine.close()
