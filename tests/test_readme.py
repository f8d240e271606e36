"""The README's commands print what it shows, and its client code talks to a server."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SHOWN = re.findall(r"```console\n\$ uv run (mach-(?:generate|archs)[^\n]*)\n(.*?)```", README, re.DOTALL)
FIGURES = re.compile(r"^prompt \d+ tokens, .*; finish \w+\n", re.MULTILINE)


def test_the_readme_shows_commands() -> None:
    assert {shlex.split(command)[0] for command, _ in SHOWN} == {"mach-generate", "mach-archs"}


@pytest.mark.skipif(sys.platform != "linux", reason="the output shown is the CPU backend's")
@pytest.mark.parametrize(("command", "output"), SHOWN, ids=[command for command, _ in SHOWN])
def test_a_command_prints_what_the_readme_shows(command: str, output: str) -> None:
    program, *arguments = shlex.split(command)
    run = subprocess.run(
        [str(Path(sys.executable).parent / program), *arguments],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert run.stdout == FIGURES.sub("", output)
    assert len(FIGURES.findall(run.stderr)) == len(FIGURES.findall(output))
