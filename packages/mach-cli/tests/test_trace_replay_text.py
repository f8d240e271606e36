import json
import re

import pytest

from mach_cli.trace_command import main
from mach_store.trace.trace_replay import REPLAYED


@pytest.fixture
def replay(capsys):
    """A function (arguments) → exit status, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main(["replay", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def test_hit_rates_and_reads_are_shown_by_size_and_policy(replay, recording) -> None:
    status, out, err = replay(recording)
    assert (status, err) == (0, "")
    facts, _, title, columns, _, least, *_ = out.splitlines()
    assert re.fullmatch(
        r"sliced \(qwen3_moe\), \d layers of 8 experts, top 2; 2 answers, \d+ tokens of prompts, "
        r"\d+ decoded; mach trace record \S+, \w+ in \d+ slots",
        facts,
    )
    assert title == "hit rate"
    assert columns.split() == ["slots", "part", "bank", "MB", *REPLAYED]
    assert len(least.split()) == 3 + len(REPLAYED)
    assert "MB read from disk for each decoded token" in out
    whole = [line.split() for line in out.splitlines() if " 1.000 " in line]
    assert whole[0][3:] == ["1.0000"] * len(REPLAYED)
    assert whole[1][3:] == ["0.000"] * len(REPLAYED)


def test_policies_and_sizes_are_chosen_and_told_as_json(replay, recording) -> None:
    status, out, _ = replay(recording, "--policy", "belady,lru,lru", "--sizes", "0.5,5,1.0,16", "--json")
    assert status == 0
    banks = json.loads(out)["banks"]
    assert [bank["policy"] for bank in banks] == ["belady"] * 3 + ["lru"] * 3
    assert [bank["slots"] for bank in banks] == [8, 5, 16] * 2
    by_policy = {(bank["policy"], bank["slots"]): bank["hits"] for bank in banks}
    for slots in {bank["slots"] for bank in banks}:
        assert by_policy["belady", slots] >= by_policy["lru", slots]


def test_a_recording_that_was_broken_off_is_replayed_with_a_warning(replay, recording, tmp_path) -> None:
    path = tmp_path / "run.trace.partial"
    path.write_bytes(recording.read_bytes()[:-3])
    status, out, err = replay(path, "--sizes", "1.0")
    assert status == 0
    assert out
    assert re.fullmatch(r"mach trace: \S+partial: block \d+ is cut off .* is lost\n", err)
    assert json.loads(replay(path, "--sizes", "1.0", "--json")[1])["complete"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "1"], "a bank of 1 slots does not hold one token's"),
        (["--sizes", "9999"], "is larger than all"),
        (["--sizes", "1.5"], "is larger than all"),
    ],
)
def test_a_size_that_cannot_be_is_one_line(replay, recording, arguments, message) -> None:
    status, out, err = replay(recording, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("mach trace: ")
    assert err.count("\n") == 1


def test_a_file_that_is_no_trace_is_one_line(replay, tmp_path) -> None:
    (tmp_path / "x").write_bytes(b"no trace at all")
    for name in ("x", "nothing"):
        status, out, err = replay(tmp_path / name)
        assert (status, out) == (2, "")
        assert err.startswith(f"mach trace: {tmp_path / name}: ")
        assert err.count("\n") == 1


def test_a_damaged_byte_is_one_line_that_names_the_block(replay, recording, tmp_path) -> None:
    data = bytearray(recording.read_bytes())
    data[-60] ^= 1
    (tmp_path / "x").write_bytes(data)
    status, _, err = replay(tmp_path / "x")
    assert status == 2
    assert re.match(rf"mach trace: {tmp_path}/x: block \d+: .*checksum", err)


@pytest.mark.parametrize(
    ("flag", "values"),
    [("--policy", ["random", "", "lru,"]), ("--sizes", ["", "0", "-1", "0.0", "half", "nan", "1e3", "0.5,"])],
)
def test_a_bad_value_is_an_error_that_names_its_flag(replay, recording, capsys, flag, values) -> None:
    for value in values:
        with pytest.raises(SystemExit) as caught:
            replay(recording, f"{flag}={value}")
        assert caught.value.code == 2
        assert f"argument {flag}: " in capsys.readouterr().err
