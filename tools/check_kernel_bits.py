"""Compares the bits that mach-native's CPU kernels give on different instruction sets and machines.

    python tools/check_kernel_bits.py [--sanitize] [--cross aarch64-linux-gnu-g++ --run "qemu-aarch64"]

Builds native/tests/kernel_bits.cpp for this machine, and with `--cross` for another one, whose programs
`--run` runs. Every instruction set must give the same checksums. With `--sanitize` memory errors and
undefined behaviour on this machine end the check too. Needs a C++20 compiler and the standard library.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

NATIVE = Path(__file__).resolve().parents[1] / "native"
SOURCES = NATIVE / "src" / "cpu_kernels"
FLAGS = {
    "kernels_avx2.cpp": ["-mavx2", "-mfma"],
    "kernels_avx512.cpp": ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-w"],
}


def build(compiler: str, folder: Path, options: list[str], *, x86: bool) -> Path:
    """The program, built with `compiler`."""
    common = [compiler, "-std=c++20", "-O2", "-ffp-contract=off", f"-I{SOURCES}", *options]
    objects = []
    for source in (*sorted(SOURCES.glob("*.cpp")), NATIVE / "tests" / "kernel_bits.cpp"):
        target = folder / f"{source.stem}.o"
        flags = FLAGS.get(source.name, []) if x86 else []
        subprocess.run([*common, *flags, "-c", str(source), "-o", str(target)], check=True)
        objects.append(str(target))
    program = folder / "kernel_bits"
    subprocess.run([*common, *objects, "-pthread", "-o", str(program)], check=True)
    return program


def checksums(command: list[str]) -> dict[str, dict[str, str]]:
    """Instruction set → case → checksum."""
    sets: dict[str, dict[str, str]] = {}
    for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
        name, what, number, value = line.split()
        sets.setdefault(name, {})[f"{what} {number}"] = value
    return sets


def main() -> int:
    """Build, run, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sanitize", action="store_true")
    parser.add_argument("--cross", help="a compiler for another machine")
    parser.add_argument("--run", default="", help="what runs its programs")
    arguments = parser.parse_args()
    compiler = os.environ.get("CXX", "c++")
    here = subprocess.run([compiler, "-dumpmachine"], check=True, capture_output=True, text=True).stdout
    sanitizers = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    results: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        program = build(
            compiler, Path(folder), sanitizers if arguments.sanitize else [], x86=here.startswith("x86_64")
        )
        # Threads after a fork are more than a sanitizer or QEMU's emulation of a process follows.
        command = [str(program), *([] if arguments.sanitize else ["fork"])]
        results |= {f"here {name}": cases for name, cases in checksums(command).items()}
    if arguments.cross:
        with tempfile.TemporaryDirectory() as folder:
            program = build(arguments.cross, Path(folder), ["-static"], x86=False)
            there = checksums([*shlex.split(arguments.run), str(program)])
            results |= {f"there {name}": cases for name, cases in there.items()}
    names = list(results)
    bad = 0
    for name in names[1:]:
        other = [case for case in results[names[0]] if results[name].get(case) != results[names[0]][case]]
        bad += len(other)
        same = len(results[names[0]]) - len(other)
        print(f"{names[0]} = {name}: {same} of {len(results[names[0]])} cases {', '.join(other[:5])}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
