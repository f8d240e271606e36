"""mach-generate as a process: exit status, one line on stderr, no traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

from mach.io.checkpoint_path import resolve_checkpoint

GENERATE = str(Path(sys.executable).parent / "mach-generate")


@pytest.fixture
def run(monkeypatch):
    """A function (arguments, …) → the finished process, with no network to ask."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def go(*arguments: str | Path, code: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [GENERATE] if code is None else [sys.executable, "-c", code]
        return subprocess.run(
            [*command, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
        )

    return go


def refused(result: subprocess.CompletedProcess[str], message: str) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert message in result.stderr


def test_an_answer_goes_to_stdout_and_one_line_of_figures_to_stderr(run) -> None:
    result = run("mach-pico", "--prompt", "def f(x):", "--max-tokens", "4")
    assert result.returncode == 0
    assert result.stdout.endswith("\n")
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("prompt ")


def test_what_is_not_there_is_one_line(run, tmp_path) -> None:
    refused(run(tmp_path / "nothing", "--prompt", "x"), "neither a directory here")
    refused(run("nobody/no-such-model", "--prompt", "x"), "download it first and give its directory")


def test_a_bad_variable_is_one_line(run, monkeypatch) -> None:
    monkeypatch.setenv("LME_SCRATCH_EXPERTS", "zero")
    refused(
        run("mach-pico", "--prompt", "x"), "LME_SCRATCH_EXPERTS='zero': must be an integer from 1 to 4096"
    )


WITHOUT_NATIVE = (
    "import sys; sys.modules['lme_mlx_pread_ext'] = None\n"
    "from mach_cli.generate_command import main\n"
    "sys.exit(main())"
)


def test_without_the_native_reader_it_fails_fast_or_is_told_to_read_slowly(run, monkeypatch) -> None:
    arguments = ("mach-pico", "--prompt", "def f(x):", "--max-tokens", "4", "--expert-cache-gb", "0.02")
    refused(run(*arguments, code=WITHOUT_NATIVE), "install mach-native")
    expected = run(*arguments)
    monkeypatch.setenv("LME_FALLBACK_POLICY", "diagnostic-python")
    slow = run(*arguments, code=WITHOUT_NATIVE)
    assert slow.returncode == 0, slow.stderr
    assert slow.stdout == expected.stdout


def test_a_reader_that_leaves_is_no_failure(tmp_path) -> None:
    script = f"{GENERATE} mach-pico --prompt 'def f(x):' --max-tokens 40 | head -c 1 > {tmp_path / 'out'}"
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert "Traceback" not in result.stderr
    assert result.returncode == 0, result.stderr


def test_a_prompt_that_is_not_utf8_is_one_line(run) -> None:
    result = subprocess.run(
        [GENERATE.encode(), b"mach-pico", b"--prompt", b"caf\xe9"],
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 2
    assert b"half of a surrogate pair" in result.stderr
    assert result.stderr.count(b"\n") == 1


def test_the_installed_checkpoint_is_what_its_name_means(run) -> None:
    by_name = run("mach-pico", "--prompt", "import os", "--max-tokens", "5")
    by_path = run(resolve_checkpoint("mach-pico"), "--prompt", "import os", "--max-tokens", "5")
    assert by_name.stdout == by_path.stdout
