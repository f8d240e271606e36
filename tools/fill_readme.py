"""Put the real output of the README's `console` commands under them, where their block asks for it.

    uv run python tools/fill_readme.py

Rewrites README.md in place: in every block whose first line is `$ uv run mach-generate …` or `$ uv run
mach-archs`, everything after that line is replaced by what the command prints (stdout, then stderr).
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(r"(```console\n\$ (uv run mach-(?:generate|archs)[^\n]*)\n).*?(```)", re.DOTALL)


def _run(match: re.Match[str]) -> str:
    words = shlex.split(match.group(2))[2:]
    program = str(Path(sys.executable).parent / words[0])
    done = subprocess.run([program, *words[1:]], capture_output=True, text=True, check=True)
    return match.group(1) + done.stdout + done.stderr + match.group(3)


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    README.write_text(BLOCK.sub(_run, README.read_text()))
