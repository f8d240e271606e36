import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mach.commands import check, dispatch
from mach.io.inspection import inspect_checkpoint
from mach.io.sidecar_layout import Quantization, read_layout
from mach_cli.prune_command import main

SUMMARY = re.compile(
    r"(?P<output>.*): (?P<kept>\d+) of (?P<all>\d+) experts in each of (?P<layers>\d+) layers, [\d.]+ GB, "
    r"and [\d.]+ GB of other weights; [\d.]+ s, [\d.]+ GB/s\n"
)


@pytest.fixture
def prune(capsys):
    """A function (arguments) → exit status, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def plan(tmp_path) -> Path:
    path = tmp_path / "plan.jsonl"
    lines = [
        {"candidate_id": "k4", "keep": {"0": [0, 2, 4, 6], "1": [7, 6, 5, 4]}},
        {"candidate_id": "k2", "keep": {"0": [1, 3], "1": [5, 0]}},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_every_expert_stays_without_a_plan(prune, stacked, tmp_path) -> None:
    status, out, err = prune("--source", stacked, "--output", tmp_path / "out")
    assert (status, err) == (0, "")
    match = SUMMARY.fullmatch(out)
    assert match["output"] == str(tmp_path / "out")
    assert (match["kept"], match["all"], match["layers"]) == ("8", "8", "2")
    status, out, err = prune("--source", stacked, "--output", tmp_path / "out")
    assert (status, err) == (0, "")
    assert out == f"{tmp_path / 'out'}: already there, complete: 8 of 8 experts in each of 2 layers\n"


def test_a_candidate_of_a_plan_is_made_and_mach_check_says_ok(prune, stacked, tmp_path, plan, capsys) -> None:
    output = tmp_path / "out"
    status, out, _ = prune(
        "--source", stacked, "--output", output, "--plan", plan, "--candidate-id", "k2"
    )  # fmt: skip
    assert status == 0
    assert SUMMARY.fullmatch(out)["kept"] == "2"
    assert inspect_checkpoint(output).shape.num_experts == 2
    assert check.main([str(output), "--local-only"]) == 0
    report = capsys.readouterr().out
    assert "expert_streaming     ok" in report


def test_mach_prune_is_also_a_command_of_mach(sliced, tmp_path, capsys) -> None:
    assert dispatch.main(["prune", "--source", str(sliced), "--output", str(tmp_path / "out")]) == 0
    assert SUMMARY.fullmatch(capsys.readouterr().out)
    program = Path(sys.executable).parent / "mach-prune"
    run = subprocess.run(
        [program, "--source", sliced, "--output", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "already there, complete" in run.stdout


def test_plain_experts_are_packed_on_demand(prune, tmp_path, plain) -> None:
    status, _, err = prune(
        "--source", plain, "--output", tmp_path / "out", "--bits", 8, "--mode", "mxfp8", "--group-size", 32
    )
    assert status == 0, err
    q = Quantization(mode="mxfp8", bits=8, group_size=32)
    assert read_layout(tmp_path / "out" / "expert_sidecar").layers[0].schema.quantization == (q, q, q)


def test_a_source_without_a_tokenizer_is_sliced_with_a_word(prune, plain, tmp_path) -> None:
    status, out, err = prune("--source", plain, "--output", tmp_path / "out")
    assert status == 0
    assert SUMMARY.fullmatch(out)
    assert err == f"mach-prune: {plain} has no tokenizer, so neither has {tmp_path / 'out'}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--candidate-id", "k2"], "--candidate-id k2: names a line of a plan: give --plan too"),
        (["--plan", "PLAN"], "choose one with --candidate-id: 'k4', 'k2'"),
        (["--plan", "PLAN", "--candidate-id", "k3"], "has no candidate 'k3', only 'k4', 'k2'"),
        (["--plan", "NOTHING", "--candidate-id", "k3"], "cannot be read (No such file or directory)"),
        (["--bits", "8"], "already packed"),
        (["--output", "SOURCE"], "is the source, or inside it"),
        (
            ["--source", "no-such-model"],
            "is neither a directory here nor the name",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    prune, stacked, tmp_path, plan, arguments, message
) -> None:
    paths = {"PLAN": plan, "SOURCE": stacked, "NOTHING": tmp_path / "nothing"}
    given = [paths.get(argument, argument) for argument in arguments]
    status, out, err = prune("--source", stacked, "--output", tmp_path / "out", *given)
    assert (status, out) == (2, "")
    assert err.startswith("mach-prune: ")
    assert err.count("\n") == 1
    assert message in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.jsonl"]


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["--source", "x"], ["--output", "x"], ["--source", "x", "--output", "y", "--mode", "affine"],
        ["--source", "x", "--output", "y", "--bits", "7"], ["--source", "x", "--output", "y", "--num", "3"],
        ["--source", "x", "--output", "y", "--bits", "4", "--mode", "nf4"],
    ],
)  # fmt: skip
def test_wrong_calls_are_usage_errors(prune, arguments) -> None:
    with pytest.raises(SystemExit) as caught:
        prune(*arguments)
    assert caught.value.code == 2
