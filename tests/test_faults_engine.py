"""A disk that fails while an engine answers: right tokens or a clear error, and then a bank in order."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from disk_faults import DiskFaults, possible

pytestmark = pytest.mark.skipif(not possible(), reason="LD_PRELOAD")
SCRIPT = Path(__file__).parent / "support" / "engine_on_faults.py"


@pytest.mark.parametrize(
    ("kernels", "rounds", "arguments"),
    [("1", "60", ()), ("0", "20", ()), ("0", "20", ("--twin",))],
    ids=["native kernels", "stock operations", "Python reader"],
)
def test_a_failing_disk_yields_right_tokens_or_errors_that_name_the_expert(
    tmp_path: Path, kernels: str, rounds: str, arguments: tuple[str, ...]
) -> None:
    faults = DiskFaults(tmp_path)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "mach-pico", rounds, "7", *arguments],
        env={**faults.environment, "LME_CPU_KERNELS": kernels, "LME_ASYNC_PREFETCH": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert min(counts.get(name, 0) for name in ("whole", "cancelled", "corrupt", "unreadable")) >= 2, counts
    assert (counts["prefetch_used"] > 0) == (kernels == "1")
    for kind in ("failed", "ended", "flipped", "interrupted", "cut", "delayed"):
        assert faults.count(kind) > 0, kind


def test_reads_ahead_that_are_late_change_no_token(tmp_path: Path) -> None:
    faults = DiskFaults(tmp_path)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "mach-pico", "25", "3", "--slow"],
        # Without checksums nothing but the order of events keeps a wrong record out.
        env={**faults.environment, "LME_ASYNC_PREFETCH": "1", "LME_VERIFY_READS": "0"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["prefetch_used"] > 100 and counts["resized"] > 2 and counts["cancelled"] > 2, counts
    assert faults.count("delayed") > 1000
