import json
import re

import pytest

from mach_cli.trace_command import main
from mach_store.trace import trace_writer
from mach_store.trace.trace_events import AnswerBegan, AnswerEnded, ModelPass
from mach_store.trace.trace_reader import TraceReader

SUMMARY = re.compile(
    r"(?P<file>\S+): (?P<answers>\d+) answers, (?P<passes>\d+) passes, [\d.]+ kB; "
    r"experts (?P<residency>\w+), hit rate (?P<rate>[\d.]+) \((?P<hits>\d+) hits, (?P<misses>\d+) misses\)\n"
)
SMALL_BANK = ("--expert-cache-gb", "0.00007")


@pytest.fixture
def record(capsys, tmp_path):
    """A function (checkpoint, arguments) → exit status, stdout, stderr; into tmp_path/run.trace."""

    def run(checkpoint, *arguments: object) -> tuple[int, str, str]:
        status = main(["record", str(checkpoint), "--out", str(tmp_path / "run.trace"), *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def events_of(path) -> tuple[list, TraceReader]:
    with TraceReader(str(path)) as reader:
        return list(reader.events()), reader


def test_prompts_become_a_trace_and_a_line(record, sliced, tmp_path) -> None:
    status, out, err = record(
        sliced, "--prompt", "def f(x):", "--prompt", "a", "--max-tokens", 5, *SMALL_BANK
    )
    assert (status, err) == (0, "")
    told = SUMMARY.fullmatch(out)
    assert told, out
    assert (told["file"], told["answers"]) == (str(tmp_path / "run.trace"), "2")
    assert float(told["rate"]) < 1
    events, reader = events_of(tmp_path / "run.trace")
    assert sum(isinstance(event, AnswerBegan) for event in events) == 2
    assert sum(event == AnswerEnded(True) for event in events) == 2
    assert sum(isinstance(event, ModelPass) and not event.prefill for event in events) == 10
    assert reader.ending.ended == "finished"
    assert reader.header.run.recorded_by == "mach trace record"
    assert int(told["passes"]) == reader.ending.passes


def test_the_counts_told_as_json_are_those_of_the_replay(record, sliced, tmp_path, capsys) -> None:
    status, out, _ = record(sliced, "--prompt", "def f(x):", "--max-tokens", 8, "--json", *SMALL_BANK)
    assert status == 0
    told = json.loads(out)
    assert (told["state"], told["answers"], told["residency"]) == ("finished", 1, "streaming")
    path = tmp_path / "run.trace"
    header = events_of(path)[1].header
    arguments = ["--policy", header.run.policy, "--sizes", str(sum(header.run.bank_slots)), "--json"]
    assert main(["replay", str(path), *arguments]) == 0
    (bank,) = json.loads(capsys.readouterr().out)["banks"]
    assert told["bank"] == {name: bank[name] for name in told["bank"]}


def test_the_same_seed_gives_the_same_routes(record, sliced, tmp_path) -> None:
    traces = []
    for seed in (5, 5, 6):
        record(sliced, "--prompt", "def", "--max-tokens", 12, "--temperature", 1, "--seed", seed)
        events, _ = events_of(tmp_path / "run.trace")
        traces.append([
            [ids.tolist() for ids in event.ids] for event in events if isinstance(event, ModelPass)
        ])  # fmt: skip
        (tmp_path / "run.trace").unlink()
    assert traces[0] == traces[1] != traces[2]


def test_prompts_come_from_a_file_and_may_be_chat(record, sliced, tmp_path) -> None:
    lines = tmp_path / "prompts.txt"
    lines.write_text("one\n\ntwo\r\n")
    assert "2 answers" in record(sliced, "--prompts", lines, "--max-tokens", 1)[1]
    plain = events_of(tmp_path / "run.trace")[0][0]
    (tmp_path / "run.trace").unlink()
    assert "2 answers" in record(sliced, "--prompts", lines, "--max-tokens", 1, "--chat")[1]
    assert events_of(tmp_path / "run.trace")[0][0].prompt_tokens > plain.prompt_tokens
    (tmp_path / "run.trace").unlink()


def test_stacked_experts_are_recorded_too(record, stacked, tmp_path) -> None:
    status, out, _ = record(stacked, "--prompt", "def", "--max-tokens", 3, "--no-streaming")
    assert status == 0
    assert SUMMARY.fullmatch(out)["residency"] == "stacked"
    assert events_of(tmp_path / "run.trace")[1].header.run.bank_slots == []


def test_a_limit_ends_the_recording_with_a_word(record, sliced, tmp_path) -> None:
    arguments = ("--prompt", "def " * 20, "--max-tokens", 90, "--temperature", 1.9)
    record(sliced, *arguments)
    path = tmp_path / "run.trace"
    limit = path.stat().st_size - 1
    path.unlink()
    status, out, _ = record(sliced, *arguments, "--limit-mb", limit / 1e6)
    assert status == 0
    assert f"(the trace has its {limit} bytes)" in out
    assert path.stat().st_size <= limit
    assert events_of(path)[1].ending.ended == "limit"


def test_a_full_disk_is_one_line_and_keeps_what_was_written(record, sliced, tmp_path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trace_writer.os, "fsync", fail)
    status, out, err = record(sliced, "--prompt", "def", "--max-tokens", 3)
    assert (status, out) == (2, "")
    assert re.fullmatch(
        r"mach trace: \S+run.trace.partial: the trace cannot be written \(No space left .*\)\n", err
    )
    assert events_of(tmp_path / "run.trace.partial")[0]


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("--limit-mb -1.0: must be a positive", ["--prompt", "x", "--limit-mb", "-1"]),
        ("--limit-mb nan", ["--prompt", "x", "--limit-mb", "nan"]),
        ("a limit of 100 bytes does not hold the header", ["--prompt", "x", "--limit-mb", "0.0001"]),
        ("prompt is empty", ["--prompt", ""]),
        ("temperature must be from 0 to 2", ["--prompt", "x", "--temperature", "9"]),
        ("nothing.txt: cannot be read .No such file", ["--prompts", "nothing.txt"]),
        ("one token needs 2 experts", ["--prompt", "x", "--expert-cache-gb", "0.000001"]),
        ("--no-streaming: needs the axis-0 stacked layout", ["--prompt", "x", "--no-streaming"]),
    ],
)
def test_what_cannot_be_done_is_one_line(record, sliced, tmp_path, message, arguments) -> None:
    status, out, err = record(sliced, *arguments)
    assert status == 2
    assert out == ""
    assert re.fullmatch(f"mach trace: .*{message}.*\n", err), err
    assert not (tmp_path / "run.trace").exists()


def test_a_trace_that_is_there_is_not_written_over(record, sliced, tmp_path) -> None:
    (tmp_path / "run.trace").write_bytes(b"mine")
    status, _, err = record(sliced, "--prompt", "x")
    assert status == 2
    assert "run.trace: is there already: give another name" in err
    assert (tmp_path / "run.trace").read_bytes() == b"mine"


def test_the_prompts_are_needed_once(record, sliced, capsys) -> None:
    for arguments in (
        [],
        ["--prompt", "x", "--prompts", "y"],
        ["--prompt", "x", "--streaming", "--no-streaming"],
    ):
        with pytest.raises(SystemExit) as caught:
            record(sliced, *arguments)
        assert caught.value.code == 2
        assert "usage: mach trace record" in capsys.readouterr().err
