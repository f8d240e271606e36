"""The official JavaScript clients, each suite in `tests/node` run against a server over a real socket."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SUITES = Path(__file__).parent / "node"
SECONDS = 240

pytestmark = pytest.mark.skipif(shutil.which("npm") is None, reason="Node.js is not installed")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suites beside the clients that they import, as package-lock.json has them."""
    directory = Path(shutil.copytree(SUITES, tmp_path_factory.mktemp("node") / "suites", ignore=_modules))
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=SECONDS)
    assert result.returncode == 0, result.stderr
    return directory


def _modules(directory: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "node_modules"]


@pytest.mark.parametrize("suite", sorted(path.name for path in SUITES.glob("*.test.mjs")))
def test_a_suite_passes(installed: Path, served_pico: str, suite: str) -> None:
    result = subprocess.run(
        ["node", "--test", suite],
        cwd=installed,
        env={**os.environ, "MACH_URL": served_pico},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert result.returncode == 0, result.stdout + result.stderr
