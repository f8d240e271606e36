"""Download what the corpus is made of, in the pinned versions of packages.txt and documents.txt.

Owns the downloads. Wheels come through pip, Debian's documentation packages through apt-get (on Debian 12;
no root needed). Which of them may be used is decided later, from their own metadata (licences.py).

Out: BUILD/wheels/*.whl, BUILD/debs/*.deb, and the packages' contents under BUILD/x/NAME/.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
PLATFORMS = ("2_17", "2_24", "2_27", "2_28", "2_34")


def lines(name: str) -> list[str]:
    """The entries of a pin file beside this one."""
    return (HERE / name).read_text().split()


def fetch_wheel(pin: str, out: Path) -> str | None:
    """Download one wheel for Python 3.12 on Linux; the pin again if that failed."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
        str(out),
    ]
    command += ["--python-version", "3.12", "--implementation", "cp", "--platform", "manylinux2014_x86_64"]
    for platform in PLATFORMS:
        command += ["--platform", f"manylinux_{platform}_x86_64"]
    return None if subprocess.run([*command, pin]).returncode == 0 else pin


def fetch_document(pin: str, build: Path) -> str | None:
    """Download and unpack one Debian package; the pin again if that failed."""
    name = pin.split("=")[0]
    if subprocess.run(["apt-get", "download", "-qq", pin], cwd=build / "debs").returncode:
        return pin
    archive = next((build / "debs").glob(f"{name}_*.deb"))
    return None if subprocess.run(["dpkg", "-x", archive, build / "x" / name]).returncode == 0 else pin


def main() -> None:
    """Download everything; exit with an error that names what is missing."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--build", type=Path, default=Path("build"))
    options = arguments.parse_args()
    for folder in ("wheels", "debs", "x"):
        (options.build / folder).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(4) as pool:
        missing = list(
            pool.map(lambda pin: fetch_wheel(pin, options.build / "wheels"), lines("packages.txt"))
        )
    missing += [fetch_document(pin, options.build) for pin in lines("documents.txt")]
    failed = [pin for pin in missing if pin]
    if failed:
        raise SystemExit(
            "could not fetch " + ", ".join(failed) + "; without them the corpus differs slightly"
        )


if __name__ == "__main__":
    main()
