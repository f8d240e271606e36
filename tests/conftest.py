import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu() -> Iterator[None]:
    """Exact comparisons hold on the CPU; a GPU's kernels change with the number of rows."""
    device = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(device)


@pytest.fixture(scope="session")
def served_pico(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of `mach-serve mach-pico --streaming` as a process of its own, for clients of all kinds.

    At the end it must drain, leave with status 0 and have logged no traceback.
    """
    log = tmp_path_factory.mktemp("serve") / "stderr"
    command = [sys.executable, "-m", "mach_server.serve_command", "mach-pico", "--streaming", "--port", "0"]
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as server,
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
    assert "Traceback" not in Path(log).read_text()
