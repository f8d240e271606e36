import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mach.commands.check import main
from mach.preflight.path_matrix import PATHS

SCHEMA = json.loads((Path(__file__).parents[3] / "docs" / "check-report.schema.json").read_text())


def conforms(value: Any, schema: Any, where: str = "$") -> list[str]:
    """What is wrong with `value`, by the part of JSON Schema that our schema uses and no more."""
    known = {
        "$schema", "title", "description", "$defs", "$ref", "oneOf", "anyOf", "type", "enum", "const",
        "properties", "required", "additionalProperties", "items", "minItems", "maxItems", "minimum",
        "maximum",
    }  # fmt: skip
    errors = [f"{where}: unknown keyword {key}" for key in schema.keys() - known]
    if "$ref" in schema:
        errors += conforms(value, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], where)
    for key, count in (("oneOf", 1), ("anyOf", None)):
        if key in schema:
            results = [conforms(value, choice, where) for choice in schema[key]]
            fitting = sum(not result for result in results)
            if fitting == 0 or (count is not None and fitting != count):
                errors.append(f"{where}: fits {fitting} of {key}: {min(results, key=len)}")
    kinds = {
        "string": str,
        "boolean": bool,
        "integer": int,
        "number": (int, float),
        "object": dict,
        "array": list,
    }
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        fits = any(
            value is None
            if t == "null"
            else isinstance(value, kinds[t]) and (t == "boolean") == isinstance(value, bool)
            for t in types
        )
        if not fits:
            return [*errors, f"{where}: {value!r} is not {types}"]
    if "enum" in schema and value not in schema["enum"]:
        errors.append(f"{where}: {value!r} is not one of {schema['enum']}")
    if "const" in schema and (value != schema["const"] or type(value) is not type(schema["const"])):
        errors.append(f"{where}: {value!r} is not {schema['const']!r}")
    if isinstance(value, (int, float)) and not schema.get("minimum", value) <= value <= schema.get(
        "maximum", value
    ):
        errors.append(f"{where}: {value!r} out of range")
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            errors.append(f"{where}: {len(value)} items")
        for index, item in enumerate(value):
            errors += conforms(item, schema.get("items", {}), f"{where}[{index}]")
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        errors += [f"{where}: lacks {name}" for name in schema.get("required", []) if name not in value]
        for name, item in value.items():
            inner = properties.get(name, schema.get("additionalProperties", {}))
            if inner is False:
                errors.append(f"{where}: surplus {name}")
            else:
                errors += conforms(item, inner, f"{where}.{name}")
    return errors


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, Any]]:
    """Runs the command with --json and a cache of its own; the report is validated."""

    def run(*arguments: object) -> tuple[int, Any]:
        cache = ["--cache-dir", str(tmp_path / "cache")]
        status = main([*map(str, arguments), "--json", *cache])
        report = json.loads(capsys.readouterr().out)
        assert conforms(report, SCHEMA) == []
        return status, report

    return run


def statuses(report: dict) -> dict[str, str]:
    return {row["path"]: row["status"] for row in report["paths"]}


def test_all_architectures_need_no_checkpoint(
    run: Callable[..., tuple[int, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    status, report = run("--all-archs")
    assert (status, list(report["architectures"])) == (0, sorted(report["architectures"]))
    assert all(facts["loadable"] for facts in report["architectures"].values())
    assert main(["--all-archs"]) == 0
    output = capsys.readouterr().out
    assert output.splitlines()[0].split() == ["path", *report["architectures"]]
    assert "does not have yet" in output


def test_a_stacked_checkpoint_is_supported_with_a_command_to_serve_it(
    run: Callable[..., tuple[int, Any]],
    families: dict[str, dict],
    make_checkpoint: Callable[..., Path],
    stacked: Callable[..., dict],
) -> None:
    directory = make_checkpoint(families["qwen3_moe"], stacked(families["qwen3_moe"]), name="a dir")
    status, report = run(directory)
    assert (status, report["supported"], report["layout"]["kind"]) == (0, True, "stacked")
    assert tuple(statuses(report)) == PATHS
    assert shlex.split(report["serve_command"]) == [
        "mach-serve", "--checkpoint", str(directory), "--streaming", "--target-only",
    ]  # fmt: skip
    assert report["memory"]["verdict"] in ("fits", "tight")
    assert (
        sum(report["memory"]["estimate"]["streaming"]["parts"].values())
        == (report["memory"]["estimate"]["streaming"]["working_set_bytes"])
    )
    assert report["speed"] is None


@pytest.mark.parametrize("model_type", ["qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4", "deepseek_v4"])
def test_every_family_in_every_layout_gives_a_valid_report(
    model_type: str,
    run: Callable[..., tuple[int, Any]],
    families: dict[str, dict],
    make_checkpoint: Callable[..., Path],
    stacked: Callable[..., dict],
) -> None:
    config = families[model_type]
    quantized = config | {"quantization": {"bits": 4, "group_size": 64}}
    cases = {
        "stacked": (make_checkpoint(config, stacked(config), name="s"), True),
        "stacked 4-bit": (make_checkpoint(quantized, stacked(config, 4), name="q"), True),
        "nothing": (make_checkpoint(config, {}, name="n"), False),
        "unknown names": (make_checkpoint(config, {"x": ("F32", (4,))}, name="u"), False),
    }
    for case, (directory, loads) in cases.items():
        status, report = run(directory)
        supported = loads and model_type != "deepseek_v4"  # which loads from the engine layout alone
        assert (status, report["supported"]) == (0 if supported else 1, supported), case
        assert (report["serve_command"] is not None) == supported


def test_the_human_report_has_the_documented_lines(
    families: dict[str, dict],
    make_checkpoint: Callable[..., Path],
    stacked: Callable[..., dict],
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory = make_checkpoint(families["qwen3_moe"], stacked(families["qwen3_moe"]))
    assert main([str(directory), "--context-length", "1000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    labels = [
        line.partition(":")[0] for line in lines if re.match(r"[a-z_ ]+:", line) and not line.startswith(" ")
    ]
    assert labels == [
        "model", "model_type", "supported", "layout", "quant", "artifacts", "memory", "speed",
        "verdict", "serve with",
    ]  # fmt: skip
    assert "artifacts: sidecar=no, draft_dir=none" in lines
    assert re.search(r"memory: verdict=\w+, experts=.*, kv@1000=.*, working_set=", "\n".join(lines))
    header = next(line for line in lines if line.startswith("path "))
    assert header.split() == ["path", "status", "reason"]


def test_an_unknown_architecture_is_a_report_with_status_1(
    run: Callable[..., tuple[int, Any]],
    make_checkpoint: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory = make_checkpoint({"model_type": "llama\x1b]0;"})
    status, report = run(directory)
    assert (status, report["supported"]) == (1, False)
    assert main([str(directory)]) == 1
    output = capsys.readouterr().out
    assert "verdict: not supported" in output
    assert "\x1b" not in output


def test_a_checkpoint_without_a_tokenizer_is_not_supported(
    run: Callable[..., tuple[int, Any]],
    families: dict[str, dict],
    make_checkpoint: Callable[..., Path],
    stacked: Callable[..., dict],
) -> None:
    config = families["qwen3_moe"]
    directory = make_checkpoint(config, stacked(config), files=("vocab.json",))
    status, report = run(directory)
    assert (status, report["supported"], report["serve_command"]) == (1, False, None)
    for path in ("openai_http", "expert_streaming", "resident_stacked"):
        assert statuses(report)[path] == "needs_artifact"
    assert "no tokenizer (looked for tokenizer.json" in report["reason"]
    (directory / "tokenizer.json").write_text("<html>")
    status, report = run(directory)
    assert (status, statuses(report)["openai_http"]) == (1, "blocked")
    assert "tokenizer.json: not a tokenizers file" in report["reason"]


def test_a_budget_below_one_tokens_experts_blocks_streaming(
    run: Callable[..., tuple[int, Any]],
    families: dict[str, dict],
    make_checkpoint: Callable[..., Path],
    stacked: Callable[..., dict],
) -> None:
    directory = make_checkpoint(families["qwen3_moe"], stacked(families["qwen3_moe"]))
    status, report = run(directory, "--expert-cache-gb", "0.0001")
    row = next(row for row in report["paths"] if row["path"] == "expert_streaming")
    assert row["status"] == "blocked"
    least = float(re.search(r"at least ([\d.]+)", row["reason"])[1])
    assert (status, shlex.split(report["serve_command"])[3]) == (0, "--no-streaming")
    status, report = run(directory, "--expert-cache-gb", least)
    assert statuses(report)["expert_streaming"] == "ok"
    assert shlex.split(report["serve_command"])[-2:] == ["--expert-cache-gb", f"{least:g}"]


def test_a_draft_is_probed(
    run: Callable[..., tuple[int, Any]], families: dict[str, dict], make_checkpoint: Callable[..., Path]
) -> None:
    directory = make_checkpoint(families["qwen3_moe"], {})
    _, report = run(directory, "--draft-dir", directory)
    assert report["artifacts"]["draft_dir"]["usable"] is False
    assert "block_size" in report["artifacts"]["draft_dir"]["reason"]


def test_speed_is_estimated_once_the_disk_was_measured(
    run: Callable[..., tuple[int, Any]],
    families: dict[str, dict],
    make_checkpoint: Callable[..., Path],
    stacked: Callable[..., dict],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    for name, value in {"PROBE_SECONDS": 0.05, "TEMPORARY_BYTES": 1 << 20, "MEMORY_BYTES": 1 << 20}.items():
        monkeypatch.setattr(f"mach.preflight.bandwidth_probe.{name}", value)
    directory = make_checkpoint(families["qwen3_moe"], stacked(families["qwen3_moe"]))
    _, measured = run(directory, "--measure-disk")
    _, later = run(directory)
    assert measured["speed"] == later["speed"]
    slow, fast = later["speed"]["tokens_per_second"]
    assert 0 < slow < fast
    main([str(directory), "--cache-dir", str(tmp_path / "cache")])
    assert "tokens/s decoding (rough estimate)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["model", "--all-archs"],
        ["model", "--context-length", "0"],
        ["model", "--context-length", "9" * 30],
        ["model", "--expert-cache-gb", "nan"],
        ["model", "--expert-cache-gb", "-1"],
        ["model", "--frobnicate"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "mach check: error" in capsys.readouterr().err


def test_hostile_checkpoints_are_one_line_and_status_2(
    tmp_path: Path,
    families: dict[str, dict],
    make_checkpoint: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    lying = make_checkpoint(families["qwen3_moe"], name="lying")
    (lying / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little"))
    absurd = make_checkpoint(families["qwen3_moe"] | {"num_hidden_layers": 10**40}, {}, name="absurd")
    cycle = tmp_path / "cycle"
    os.symlink(cycle, cycle)
    for model, text in {
        lying: "model.safetensors: header length",
        absurd: "config.json: num_hidden_layers is far",
        cycle: "cycle: cannot be listed",
        tmp_path / "cache-less" / "nothing": "neither a directory",
    }.items():
        assert main([str(model), "--local-only"]) == 2, model
        captured = capsys.readouterr()
        assert (captured.out, captured.err.count("\n")) == ("", 1)
        assert text in captured.err


def test_local_only_never_asks_the_network(
    stand_in: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
    assert main(["org/model", "--local-only"]) == 2
    assert "--local-only forbids" in capsys.readouterr().err
    assert not stand_in.requests


def test_a_hub_repository_is_judged_from_metadata(
    stand_in: Any,
    run: Callable[..., tuple[int, Any]],
    families: dict[str, dict],
    make_checkpoint: Callable[..., Path],
    stacked: Callable[..., dict],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
    directory = make_checkpoint(families["gemma4"], stacked(families["gemma4"]))
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        stand_in.add(f"/org/model/resolve/v%2F1/{name}", (directory / name).read_bytes())
    status, report = run("org/model", "--revision", "v/1")
    assert (status, report["source"], report["layout"]["kind"]) == (0, "hub", "stacked")
    assert report["serve_command"] == "mach-serve --checkpoint ./model --streaming --target-only"
    assert any("hf download org/model" in note for note in report["notes"])


def test_a_hub_repository_without_headers_is_not_claimed_to_run(
    stand_in: Any,
    run: Callable[..., tuple[int, Any]],
    families: dict[str, dict],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
    stand_in.add("/org/model/resolve/main/config.json", json.dumps(families["gpt_oss"]).encode())
    status, report = run("org/model")
    assert (status, report["supported"], report["memory"]["verdict"]) == (1, False, "unknown")
    assert statuses(report)["expert_streaming"] == "unknown"


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's count of this program's memory")
def test_400_gigabytes_in_200_shards_take_little_memory(
    tmp_path: Path, families: dict[str, dict], write_tensors: Callable[..., None]
) -> None:
    layers, experts, shards = 62, 403, 200
    config = families["qwen3_moe"] | {
        "num_hidden_layers": layers,
        "num_experts": experts,
        "hidden_size": 4096,
        "moe_intermediate_size": 1536,
        "quantization_config": {"quant_method": "fp8"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    names: list[tuple[str, tuple[str, tuple[int, ...]]]] = []
    for layer in range(layers):
        for expert in range(experts):
            for projection in ("gate_proj", "up_proj", "down_proj"):
                name = f"model.layers.{layer}.mlp.experts.{expert}.{projection}"
                names.append((f"{name}.weight", ("F8_E4M3", (1536, 4096))))
                names.append((f"{name}.weight_scale_inv", ("F32", (12, 32))))
    weight_map = {}
    size = -(-len(names) // shards)
    for shard in range(shards):
        part = dict(names[shard * size : (shard + 1) * size])
        write_tensors(tmp_path / f"model-{shard}.safetensors", part)
        weight_map |= dict.fromkeys(part, f"model-{shard}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    code = (
        "import sys; from mach.commands.check import main; main(sys.argv[1:]);"
        "print(open('/proc/self/status').read(), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "--json"], capture_output=True, text=True
    )
    report = json.loads(done.stdout)
    assert len(names) > 149_000
    assert report["memory"]["estimate"]["expert_bytes_on_disk"] > 400e9
    assert report["layout"]["kind"] == "per_expert"
    # The program's own high-water mark: getrusage's would count the memory of the test that started it.
    peak = re.search(r"VmHWM:\s+(\d+) kB", done.stderr)
    assert peak is not None and int(peak.group(1)) * 1024 < 300e6
