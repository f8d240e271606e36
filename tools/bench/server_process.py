"""Owns a server as a process of its own, for benchmarks: started, ready, ended."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 120.0


@contextmanager
def mach_serve(*arguments: str) -> Iterator[str]:
    """The URL of `mach-serve ARGUMENTS --port 0`."""
    with ready_line_server(
        [sys.executable, "-m", "mach_server.serve_command", *arguments, "--port", "0"]
    ) as (url, _):
        yield url


@contextmanager
def ready_line_server(command: Sequence[str]) -> Iterator[tuple[str, int]]:
    """URL and process id of a server that prints mach-serve's ready line."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            found = (re.search(r"ready url=(\S+)", line) for line in process.stdout or ())
            url = next((match[1] for match in found if match), None)
            if url is None:
                raise RuntimeError(f"it did not start: {command}")
            yield url, process.pid
        finally:
            process.terminate()


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, all its threads (Linux; 10 ms fine)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def mlx_lm_server(directory: Path) -> Iterator[str]:
    """The URL of `mlx_lm.server` over a checkpoint."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(directory), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if time.monotonic() > deadline or process.poll() is not None:
                        raise
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
