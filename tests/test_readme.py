"""The README's commands print what it shows, and its client code talks to a server."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
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


@pytest.fixture
def server_url() -> Iterator[str]:
    """A running `mach-serve mach-pico --streaming`, as the README starts it, on a free port."""
    program = str(Path(sys.executable).parent / "mach-serve")
    server = subprocess.Popen(
        [program, "mach-pico", "--streaming", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        ready = next(line for line in server.stdout if line.startswith("startup ready"))
        yield re.search(r"url=(\S+)", ready).group(1)
        server.terminate()
        server.communicate(timeout=60)
        assert server.returncode == 0
    finally:
        server.kill()
        server.wait(60)


def test_the_client_code_shown_chats_with_the_server_shown(
    server_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "OpenAI" in block)
    assert "http://127.0.0.1:8080" in code
    names: dict[str, object] = {}
    exec(code.replace("http://127.0.0.1:8080", server_url), names)
    names["client"].close()
    printed = capsys.readouterr().out
    assert "```python\ndef " in printed, "the seeded answer is a Python function in a code block"
