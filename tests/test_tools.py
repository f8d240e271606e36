"""The sidecar and checkpoint tools as they are called: flags, exit statuses, one line for what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from mach.io.inspection import inspect_checkpoint
from mach.io.sidecar_layout import Quantization, read_layout
from mach_decode.engine import Engine, EngineConfig
from mach_decode.request import GenerationRequest

ROOT = Path(__file__).parent.parent
HIDDEN, WIDTH, EXPERTS, LAYERS = 128, 64, 4, 2


def run_tool(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def export(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_tool("export_expert_sidecar.py", *arguments)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw bfloat16 checkpoint with one tensor per expert, its other weights those of a synthetic one."""
    made = tmp_path_factory.mktemp("made") / "synthetic"
    result = run_tool(
        "make_synthetic_checkpoint.py",
        *("--output", made, "--layers", LAYERS, "--experts", EXPERTS, "--top-k", 2),
        *("--hidden", HIDDEN, "--expert-width", WIDTH, "--seed", 5),
    )
    assert result.returncode == 0, result.stderr
    directory = made.parent / "raw"
    directory.mkdir()
    for path in made.iterdir():
        if path.is_file():
            os.link(path, directory / path.name)
    tensors = {}
    for layer in range(LAYERS):
        for expert in range(EXPERTS):
            for i, projection in enumerate(("gate_proj", "up_proj", "down_proj")):
                shape = (HIDDEN, WIDTH) if projection == "down_proj" else (WIDTH, HIDDEN)
                weight = mx.random.normal(shape, scale=0.05, key=mx.random.key(100 * layer + 10 * expert + i))
                name = f"model.layers.{layer}.mlp.experts.{expert}.{projection}.weight"
                tensors[name] = weight.astype(mx.bfloat16)
    mx.save_safetensors(str(directory / "model-experts.safetensors"), tensors, {"format": "mlx"})
    return directory


def test_a_synthetic_checkpoint_is_whole_and_answers(raw) -> None:
    directory = raw.parent / "synthetic"
    shape = inspect_checkpoint(directory).shape
    assert (shape.num_experts, shape.top_k, shape.hidden_size, shape.expert_width) == (4, 2, HIDDEN, WIDTH)
    engine = Engine.load(EngineConfig(checkpoint=str(directory)))
    *_, last = engine.generate(GenerationRequest(prompt=(1, 2, 3), max_tokens=3))
    assert last.figures.completion_tokens == 3
    engine.close()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], None),
        (["--bits", 4], Quantization(mode="affine", bits=4, group_size=64)),
        (["--bits", 8, "--group-size", 32], Quantization(mode="affine", bits=8, group_size=32)),
        (["--bits", 4, "--mode", "mxfp4"], Quantization(mode="mxfp4", bits=4, group_size=32)),
    ],
    ids=str,
)
def test_a_raw_checkpoint_is_exported_verified_and_served(raw, tmp_path, options, expected) -> None:
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    for path in raw.iterdir():
        if "experts" not in path.name:
            os.link(path, directory / path.name)
    output = directory / "expert_sidecar"
    done = export("--checkpoint", raw, "--output", output, "--num-experts", EXPERTS, *options)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert f"{LAYERS} layers of {EXPERTS} experts" in done.stdout
    assert read_layout(output).layers[1].schema.quantization == (expected,) * 3
    assert export("--verify", output).stdout == f"{output}: intact\n"
    engine = Engine.load(EngineConfig(checkpoint=str(directory)))
    tokens = [event.token for event in engine.generate(GenerationRequest(prompt=(1, 2, 3), max_tokens=3))]
    assert len(tokens) >= 3
    engine.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-experts", 256], "has 4 experts per layer, not 256"),
        (["--bits", 4, "--group-size", 128], "down_proj has 64 inputs, not a multiple of the group size 128"),
        (["--group-size", 32], "--bits"),
        (["--bits", 8, "--mode", "mxfp4"], "cannot be packed with mode mxfp4, 8 bits"),
        (["--alignment", 1000], "1000 is not a power of two"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(raw, tmp_path, options, message) -> None:
    result = export("--checkpoint", raw, "--output", tmp_path / "out", *options)
    assert result.returncode == 2
    assert result.stderr.startswith("export_expert_sidecar: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_too_small_is_one_line_and_leaves_nothing_under_the_name(raw, tmp_path) -> None:
    # Ignored, SIGXFSZ makes the write fail with EFBIG: the nearest to a full disk without one.
    code = (
        "import resource, runpy, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, resource.RLIM_INFINITY))\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    tool, output = str(ROOT / "tools" / "export_expert_sidecar.py"), str(tmp_path / "out")
    result = subprocess.run(
        [sys.executable, "-c", code, tool, "--checkpoint", str(raw), "--output", output],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "File too large; the layers done so far are kept in" in result.stderr
    assert not Path(output).exists()
    assert export("--checkpoint", raw, "--output", output).returncode == 0
    assert export("--verify", output).returncode == 0


def test_verifying_says_which_record_is_bad_and_exits_with_one(raw, tmp_path) -> None:
    output = tmp_path / "out"
    assert export("--checkpoint", raw, "--output", output).returncode == 0
    raw_bytes = bytearray((output / "layer_01.bin").read_bytes())
    stride = read_layout(output).layers[1].stride
    raw_bytes[2 * stride + 5] ^= 1
    (output / "layer_01.bin").write_bytes(raw_bytes)
    result = export("--verify", output)
    assert result.returncode == 1
    assert result.stderr == f"{output / 'layer_01.bin'}: layer 1, expert 2: checksum does not match\n"
    assert result.stdout == f"{output}: corrupt\n"


def test_wrong_calls_are_refused(tmp_path) -> None:
    missing = export("--checkpoint", tmp_path)
    assert missing.returncode == 2
    assert "--checkpoint and --output are required" in missing.stderr
    nothing = export("--verify", tmp_path / "nothing")
    assert nothing.returncode == 2
    assert nothing.stderr.count("\n") == 1
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    unknown = export("--checkpoint", tmp_path, "--output", tmp_path / "out")
    assert unknown.returncode == 2
    assert "'llama' is not supported" in unknown.stderr
