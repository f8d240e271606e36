import subprocess
import sys
from pathlib import Path

import pytest

import mach
from mach.commands.dispatch import main


def test_help_lists_the_installed_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "archs " in capsys.readouterr().out
    assert main([]) == 2


def test_python_dash_m_works_and_tells_the_version() -> None:
    done = subprocess.run([sys.executable, "-m", "mach", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"mach {mach.__version__}\n")


def test_a_subcommand_gets_the_remaining_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "extra-1.dist-info").mkdir()
    (tmp_path / "extra-1.dist-info" / "entry_points.txt").write_text(
        "[mach.commands]\nextra = extra_command:main\n"
    )
    (tmp_path / "extra_command.py").write_text("def main(arguments):\n    print(arguments)\n    return 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["extra", "--flag", "x"]) == 7
    assert capsys.readouterr().out == "['--flag', 'x']\n"


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["frobnicate"]) == 2
    assert "no command 'frobnicate' is installed" in capsys.readouterr().err
