"""Builds mach-native, its extensions and its C library, into the Python environment that runs this script.

`uv sync` builds it too, in an isolated environment. This script is for any other environment: it builds
against the MLX that is installed there, and says beforehand what is missing and how to get it. Needs Python
3.11 and its standard library.

    python tools/build_mlx_pread_ext.py [--check]
"""

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

NATIVE = Path(__file__).resolve().parents[1] / "native"
CMAKE_AT_LEAST = (3, 25)

MAC = sys.platform == "darwin"
COMPILER_ADVICE = "xcode-select --install" if MAC else "apt-get install g++ (11 or newer), or set CXX to one"
PROBE = """
#include <span>
#include <vector>
int main() {
  std::vector<int> list(1);
  std::erase(list, 0);
  return std::span(list).empty() ? 0 : 1;
}
"""


class Missing(Exception):
    """A prerequisite is not there. The message says which and how to get it."""


def pinned(name: str) -> str:
    """The version of a build requirement that native/pyproject.toml demands, for this system."""
    project = tomllib.loads((NATIVE / "pyproject.toml").read_text())
    for line in project["build-system"]["requires"]:
        requirement, _, marker = line.partition(";")
        found = re.fullmatch(rf"{name}(?:\[.*\])?==(\S+)", requirement.strip())
        if found and (not marker or sys.platform in marker):
            return found[1]
    raise Missing(
        f"native/pyproject.toml pins no {name} for {sys.platform}: mach-native supports Linux and macOS"
    )


def installer() -> list[str]:
    """The command that installs into this environment."""
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable]
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return [sys.executable, "-m", "pip", "install"]
    raise Missing(f"neither uv nor pip: install uv, or run `{sys.executable} -m ensurepip`")


def advise(requirement: str) -> str:
    """How to install a Python package here."""
    return f"`uv pip install --python {sys.executable} '{requirement}'`"


def check_python() -> str:
    """Python's C headers."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        advice = "reinstall this Python" if MAC else f"apt-get install python3.{sys.version_info.minor}-dev"
        raise Missing(f"no Python headers ({header}): {advice}, or use a Python that uv installs")
    return f"Python {sys.version.split()[0]}, headers in {header.parent}"


def check_compiler() -> str:
    """A compiler that knows the C++20 that is used here."""
    named = os.environ.get("CXX")
    names = (named,) if named else ("c++", "g++", "clang++")
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        raise Missing(f"no C++ compiler{f' {named} (from CXX)' if named else ''}: {COMPILER_ADVICE}")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(PROBE)
        tried = subprocess.run(
            [compiler, "-std=c++20", str(source), "-o", str(Path(folder) / "probe")],
            capture_output=True,
            text=True,
        )
    if tried.returncode != 0:
        reason = (tried.stderr.strip().splitlines() or ["no message"])[0]
        raise Missing(f"{compiler} cannot compile C++20 ({reason}): {COMPILER_ADVICE}")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.splitlines()
    return f"{compiler}: {version[0] if version else 'C++20'}"


def check_cmake() -> str:
    """CMake, on the path or from PyPI, which scikit-build-core finds by itself."""
    wanted = ".".join(map(str, CMAKE_AT_LEAST))
    folders = (str(Path(sys.executable).parent), os.environ.get("PATH", ""))
    found = shutil.which("cmake", path=os.pathsep.join(folders))
    advice = advise(f"cmake>={wanted}")
    if found is None:
        raise Missing(f"no CMake: {advice}")
    text = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    version = re.search(r"(\d+)\.(\d+)", text)
    if version is None or (int(version[1]), int(version[2])) < CMAKE_AT_LEAST:
        shown = version[0] if version else "of an unknown version"
        raise Missing(f"{found} is CMake {shown}, {wanted} is needed: {advice}")
    return text.splitlines()[0]


def check_build_program() -> str:
    """What CMake drives."""
    found = shutil.which("ninja") or shutil.which("make")
    if found is None and not (Path(sys.executable).parent / "ninja").exists():
        raise Missing(f"neither ninja nor make: {advise('ninja')}")
    return found or "ninja"


def version_of(name: str, requirement: str) -> str:
    """The installed version of a Python package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise Missing(f"{name} is not installed: {advise(requirement)}") from None


def check_backend() -> str:
    """scikit-build-core, because the build is not isolated."""
    return f"scikit-build-core {version_of('scikit-build-core', 'scikit-build-core>=0.11')}"


def check_nanobind() -> str:
    """The nanobind that MLX was built with; another one cannot see mx.array."""
    wanted = pinned("nanobind")
    found = version_of("nanobind", f"nanobind=={wanted}")
    if found != wanted:
        raise Missing(f"nanobind {found} is installed, {wanted} is needed: {advise(f'nanobind=={wanted}')}")
    return f"nanobind {found}"


def check_mlx() -> str:
    """MLX of the right version, with its headers, library and CMake files."""
    wanted = pinned("mlx")
    requirement = f"mlx=={wanted}" if MAC else f"mlx[cpu]=={wanted}"
    found = version_of("mlx", requirement)
    if found != wanted:
        raise Missing(f"mlx {found} is installed, {wanted} is needed: {advise(requirement)}")
    asked = subprocess.run([sys.executable, "-m", "mlx", "--cmake-dir"], capture_output=True, text=True)
    if asked.returncode != 0:
        reason = (asked.stderr.strip().splitlines() or ["no message"])[-1]
        raise Missing(f"mlx {found} does not start ({reason}): {advise(requirement)}")
    root = Path(asked.stdout.strip())
    library = "lib/libmlx.dylib" if MAC else "lib/libmlx.so"
    for part in ("share/cmake/MLX/MLXConfig.cmake", "include/mlx/mlx.h", library):
        if not (root / part).exists():
            raise Missing(f"mlx {found} has no {part} in {root}: install it again, {advise(requirement)}")
    return f"mlx {found}"


def prerequisites() -> Iterator[tuple[str, Callable[[], str]]]:
    """Every check, with the name that is shown."""
    yield "Python", check_python
    yield "C++ compiler", check_compiler
    yield "CMake", check_cmake
    yield "build program", check_build_program
    yield "build backend", check_backend
    yield "nanobind", check_nanobind
    yield "mlx", check_mlx
    yield "installer", lambda: installer()[0]


def check() -> bool:
    """Print every prerequisite and whether it is there."""
    complete = True
    for name, look in prerequisites():
        try:
            print(f"ok       {name}: {look()}")
        except Missing as missing:
            complete = False
            print(f"MISSING  {name}: {missing}")
    return complete


def build() -> int:
    """Build and install, without asking an index for anything."""
    command = installer()
    again = ["--reinstall-package", "mach-native"] if command[1] == "pip" else ["--force-reinstall"]
    return subprocess.run([*command, "--no-build-isolation", "--no-deps", *again, str(NATIVE)]).returncode


def report() -> int:
    """Import the result in a fresh interpreter, as a user would, and print how it was built."""
    script = (
        "import lme_mlx_pread_ext as ext\n"
        "for key, value in sorted(ext.build_info().items()): print(f'{key:10} {value}')"
    )
    return subprocess.run([sys.executable, "-c", script], cwd=tempfile.gettempdir()).returncode


def main() -> int:
    """Check, build, import."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only say what is there and what is missing")
    arguments = parser.parse_args()
    if not check():
        print("Nothing was built: get what is missing, then run this again.", file=sys.stderr)
        return 1
    if arguments.check:
        return 0
    if build() != 0:
        print("The build failed: its messages are above.", file=sys.stderr)
        return 1
    return 1 if report() else 0


if __name__ == "__main__":
    sys.exit(main())
