"""The official JavaScript clients, each suite in `tests/node` run against a server over a real socket."""

import os
import subprocess
from pathlib import Path

import pytest

SUITES = Path(__file__).parent / "node"
SECONDS = 240


@pytest.mark.parametrize("suite", sorted(path.name for path in SUITES.glob("*.test.mjs")))
def test_a_suite_passes(node_clients: Path, served_pico: str, suite: str) -> None:
    result = subprocess.run(
        ["node", "--test", suite],
        cwd=node_clients,
        env={**os.environ, "MACH_URL": served_pico},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert result.returncode == 0, result.stdout + result.stderr
