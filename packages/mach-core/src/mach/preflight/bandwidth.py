"""Owns what was measured of this machine's disks and memory, and the cache that keeps it between runs."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, NamedTuple

CACHE_NAME = "bandwidth.json"


class Bandwidth(NamedTuple):
    """What was measured, in bytes per second.

    Attributes:
        disk: random reads of `block` bytes by four threads.
        memory: one thread's copying, reads and writes both counted.
        block: bytes per read.
        direct: whether the page cache was bypassed.
        measured: date, ISO 8601.
    """

    disk: float
    memory: float
    block: int
    direct: bool
    measured: str


def cached_bandwidth(cache_root: str, directory: str) -> Bandwidth | None:
    """The last measurement of the disk that holds `directory`, or None."""
    entry: Any = _read_cache(cache_root).get(_device(directory))
    try:
        return Bandwidth(
            disk=float(entry["disk"]),
            memory=float(entry["memory"]),
            block=int(entry["block"]),
            direct=bool(entry["direct"]),
            measured=str(entry["measured"])[:40],
        )
    except (TypeError, KeyError, ValueError):
        return None  # absent, or not ours


def remember_bandwidth(cache_root: str, directory: str, bandwidth: Bandwidth) -> None:
    """Keep a measurement; a cache that cannot be written is no reason to fail."""
    document = _read_cache(cache_root) | {_device(directory): bandwidth._asdict()}
    path = os.path.join(cache_root, CACHE_NAME)
    try:
        os.makedirs(cache_root, exist_ok=True)
        with open(f"{path}.{os.getpid()}", "w", encoding="utf-8") as handle:
            json.dump(document, handle)
        os.replace(f"{path}.{os.getpid()}", path)
    except OSError as error:
        print(f"mach: the measurement is not kept: {error}", file=sys.stderr)


def _read_cache(cache_root: str) -> dict[str, Any]:
    try:
        with open(os.path.join(cache_root, CACHE_NAME), encoding="utf-8") as handle:
            document = json.loads(handle.read(1 << 20))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _device(directory: str) -> str:
    try:
        return f"device-{os.stat(directory).st_dev}"
    except OSError:
        return "device-unknown"
