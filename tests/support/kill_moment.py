"""Owns a child process that kills itself at the n-th moment at which it touches its output directory."""

import subprocess
import sys
from pathlib import Path

_HOOK = """
import os, signal, sys
from pathlib import Path

source, output, moment = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
moments = 0

def touches_the_output(event, args):
    # Every open, rename, deletion and look-up of a C function (for the exchange) is a moment.
    if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "ctypes.dlsym"):
        return
    if event != "ctypes.dlsym" and not any(str(arg).startswith(output) for arg in args):
        return
    global moments
    moments += 1
    if moments == moment:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def command_at(work: str, source: Path, output: Path, moment: int, *more: str) -> list[str]:
    """The command of a child that runs `work` and prints how many moments there were.

    Args:
        work: lines of Python; first a line of imports, then what reads `source` and writes `output`.
        source: a `Path` to the child.
        output: a string to the child.
        moment: when it kills itself; 0 is never.
        more: further arguments, in the child's `sys.argv`.
    """
    imports, _, rest = work.strip().partition("\n")
    script = f"{imports}\n{_HOOK}\nsys.addaudithook(touches_the_output)\n{rest}\nprint(moments)\n"
    return [sys.executable, "-c", script, str(source), str(output), str(moment), *more]


def run_until(
    work: str, source: Path, output: Path, moment: int, *more: str
) -> subprocess.CompletedProcess[str]:
    """As `command_at`, run to its end."""
    return subprocess.run(
        command_at(work, source, output, moment, *more),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
