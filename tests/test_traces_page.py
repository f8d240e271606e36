"""docs/traces.md: its flags are the commands', and its replay prints what it shows."""

import re
import shlex
from pathlib import Path

import pytest

from mach_cli.trace_command import main
from mach_store.trace.trace_reader import TraceReader

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "traces.md").read_text()
SHOWN = dict(re.findall(r"```console\n\$ (mach trace [^\n]*)\n(.*?)```", PAGE, re.DOTALL))


def shown(command: str) -> tuple[list[str], str]:
    (line,) = (line for line in SHOWN if line.startswith(f"mach trace {command} "))
    return shlex.split(line)[2:], SHOWN[line]


def test_the_replay_prints_what_the_page_shows(monkeypatch, capsys) -> None:
    """Where a policy has changed: run the page's commands, and put their output into it."""
    monkeypatch.chdir(ROOT)
    arguments, output = shown("replay")
    assert main(arguments) == 0
    assert capsys.readouterr().out == output


def test_the_pictures_shown_are_what_the_command_draws(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(ROOT)
    arguments, output = shown("plot")
    names = [Path(line).name for line in output.split()]
    for name in names:
        assert f"](traces/{name})" in PAGE
        assert (ROOT / "docs" / "traces" / name).stat().st_size < 150_000
    arguments[arguments.index("--out") + 1] = str(tmp_path)
    assert main([*arguments, "--sizes", "0.5,1.0"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    capsys.readouterr()


def test_the_recording_shown_gives_a_trace_like_the_one_kept(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(ROOT)
    arguments, _ = shown("record")
    arguments[arguments.index("--out") + 1] = str(tmp_path / "pico.trace")
    arguments[arguments.index("--max-tokens") + 1] = "3"
    assert main(arguments) == 0
    capsys.readouterr()
    with TraceReader(str(tmp_path / "pico.trace")) as new, TraceReader("docs/traces/pico.trace") as kept:
        for field in ("architecture", "layers", "experts", "top_k", "record_bytes", "pools", "fingerprint"):
            assert getattr(new.header, field) == getattr(kept.header, field)


@pytest.mark.parametrize("command", ["record", "replay", "plot"])
def test_the_page_names_the_flags_that_there_are(command, capsys) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    flags = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    synopsis = PAGE[PAGE.index(f"    mach trace {command} ") :]
    synopsis = re.split(r"\n    mach trace |\n\n", synopsis[4:])[0]
    assert set(re.findall(r"--[a-z-]+", synopsis)) == flags
    for flag in flags:
        assert f"`{flag}`" in PAGE or f"{flag} " in PAGE
