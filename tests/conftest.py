import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest

NODE_SUITES = Path(__file__).parent / "node"
OUT_OF_REACH = re.compile(
    r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|TIMEOUT"
)
COMPATIBILITY = Path(__file__).parents[1] / "docs" / "compatibility.json"


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu() -> Iterator[None]:
    """Exact comparisons hold on the CPU; a GPU's kernels change with the number of rows."""
    device = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(device)


@contextlib.contextmanager
def serving_pico(log: Path, *flags: str) -> Iterator[str]:
    """The URL of `mach-serve mach-pico --streaming` as a process of its own.

    At the end it must drain, leave with status 0 and have logged no traceback.
    """
    command = [sys.executable, "-m", "mach_server.serve_command", "mach-pico", "--streaming", "--port", "0"]
    with (
        log.open("w") as stderr,
        subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=stderr, text=True) as server,
    ):
        try:
            url = next(
                (found[1] for line in server.stdout or () if (found := re.search(r"ready url=(\S+)", line))),
                None,
            )
            assert url, log.read_text()
            yield url
        finally:
            server.terminate()
            try:
                status = server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
                raise
    assert status == 0
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="session")
def served_pico(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with every expert in memory, for clients of all kinds."""
    with serving_pico(tmp_path_factory.mktemp("serve") / "stderr") as url:
        yield url


@pytest.fixture(scope="session")
def served_narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server whose bank holds a third of the experts."""
    with serving_pico(tmp_path_factory.mktemp("serve") / "stderr", "--expert-cache-gb", "0.008") as url:
        yield url


@pytest.fixture(scope="session")
def node_clients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suites of tests/node beside the clients that they import, as package-lock.json has them.

    Skips where there is no Node.js, or no way to the registry; any other failure to install is a failure.
    """
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("Node.js or npm is not installed")
    ignored = shutil.ignore_patterns("node_modules")
    directory = Path(shutil.copytree(NODE_SUITES, tmp_path_factory.mktemp("node") / "suites", ignore=ignored))
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    command += ["--fetch-retries=2", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"]
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=240)
    if result.returncode != 0 and (found := OUT_OF_REACH.search(result.stderr)):
        pytest.skip(f"the npm registry is out of reach ({found[0]})")
    assert result.returncode == 0, result.stderr
    return directory


class CompatibilityRecord:
    """What the tests find of families, quantisations and modes: the data of docs/compatibility.md.

    A test that has seen something work, or be refused, says so by calling this. Usually that is compared with
    docs/compatibility.json; when tools/compatibility_page.py runs the tests, it is written there instead.
    """

    def __init__(self, recording: bool) -> None:
        self._recording = recording
        self._known = json.loads(COMPATIBILITY.read_text()) if COMPATIBILITY.exists() else {}
        self._found: dict[str, dict[str, dict[str, str]]] = {}

    def __call__(self, section: str, row: str, column: str, outcome: str) -> None:
        """State one cell.

        Args:
            section: a table of the page; its heading stands in tools/compatibility_page.py.
            row: of the table, e.g. `qwen3_moe, mxfp4`.
            column: e.g. `stacked`.
            outcome: what holds, never a measured figure: `= mlx-lm`, `refused: …`.
        """
        self._found.setdefault(section, {}).setdefault(row, {})[column] = outcome
        if not self._recording:
            known = self._known.get(section, {}).get(row, {}).get(column)
            assert known == outcome, (
                f"{section}: {row}: {column}: docs/compatibility.json says {known!r}, this run {outcome!r}: "
                "run tools/compatibility_page.py"
            )

    def save(self) -> None:
        """Replace every section that was found anew."""
        if self._recording:
            document = json.dumps(self._known | self._found, indent=1, ensure_ascii=False)
            COMPATIBILITY.write_text(document + "\n")


@pytest.fixture(scope="session")
def compatibility() -> Iterator[CompatibilityRecord]:
    record = CompatibilityRecord(recording=os.environ.get("MACH_RECORD_COMPATIBILITY") == "1")
    yield record
    record.save()
