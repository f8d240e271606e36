import subprocess
import sys

import pytest

from mach.commands.process import run_command
from mach.errors import CommandError, MachError


def raising(error: BaseException) -> int:
    def command(arguments: object) -> int:
        raise error

    return run_command("tool", command, [])


def test_our_errors_are_one_line_and_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(MachError("bad file")) == 2
    assert raising(CommandError("not that", exit_status=1)) == 1
    assert raising(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "tool: bad file\ntool: not that\n"


def test_a_closed_pipe_is_no_failure() -> None:
    done = subprocess.run(
        f"{sys.executable} -m mach.commands.archs --json | head -c 1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[", "")
