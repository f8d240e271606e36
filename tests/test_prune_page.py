"""docs/prune.md: its example does what it shows, and its flags are the command's."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mach_cli.prune_command import main

PAGE = (Path(__file__).parent.parent / "docs" / "prune.md").read_text()
COMMANDS = re.compile(r"^\$ (mach-prune[^\n]*)\n([^$]*)", re.MULTILINE)
FIGURES = re.compile(r"; [\d.]+ s, [\d.]+ GB/s$", re.MULTILINE)


def test_the_example_prints_what_the_page_shows_and_the_result_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})
    (console,) = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    shown = COMMANDS.findall(console)
    assert len(shown) == 2
    for command, output in shown:
        program, *arguments = shlex.split(command)
        path = str(Path(sys.executable).parent / program)
        run = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=120, check=True)
        assert run.stderr == ""
        assert FIGURES.sub("", run.stdout) == FIGURES.sub("", output)
    scripts = Path(sys.executable).parent
    check = [str(scripts / "mach"), "check", "pico-k16", "--local-only"]
    assert (
        "expert_streaming     ok" in subprocess.run(check, capture_output=True, text=True, check=True).stdout
    )
    generate = [str(scripts / "mach-generate"), "pico-k16", "--prompt", "def f(x):", "--max-tokens", "3"]
    subprocess.run(generate, capture_output=True, text=True, timeout=120, check=True)


def test_the_page_describes_just_the_flags_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    flags = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    synopsis = PAGE[PAGE.index("    mach-prune --source") : PAGE.index("| flag |")]
    assert set(re.findall(r"--[a-z-]+", synopsis)) == flags
    rows = "\n".join(re.findall(r"^\| (`--[^|]*) \|", PAGE, re.MULTILINE))
    assert set(re.findall(r"--[a-z-]+", rows)) == flags
