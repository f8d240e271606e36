"""Mixed traffic against one server for some minutes: nothing may break, mix up, leak or stay behind.

    uv run python tools/bench/soak_server.py [--minutes 3] [--clients 12] [--seed 1]

Serves mach-pico with a bank that holds a third of the experts. Clients ask whole and streamed, with tools and
schemas, leave at random stages, read slowly, send nonsense, and come in bursts above the queue
(soak_client.py). Checked: no 5xx but 503; every answer to a greedy or seeded question is the one that was
given before; memory grows by no more than --growth-mb after a third of the time; at the end the engine is
free, as many descriptors are open as at the beginning, the questions still have their answers, and the server
leaves with status 0.

Ends with status 1 if anything was wrong. Appends to docs/bench/soak.csv. Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench_record import append_rows
from soak_client import Client, Ledger

from mach.commands.process import run_command

SETTLE_SECONDS = 60.0


def main(arguments: Sequence[str]) -> int:
    """Soak, print a table, append the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--growth-mb", type=float, default=32.0)
    options = parser.parse_args(arguments)
    ledger, answers = Ledger(), dict[str, str]()
    command = [sys.executable, "-m", "mach_server.serve_command", "mach-pico", "--streaming", "--port", "0"]
    command += ["--expert-cache-gb", "0.008"]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        assert server.stdout is not None
        url = next(line.split("url=")[1].split()[0] for line in server.stdout if "ready url=" in line)
        Client(url, options.seed, ledger, answers).learn()
        _settled(url, server.pid, None)
        time.sleep(1)  # the last connections are closed
        descriptors = _descriptors(server.pid)
        sizes = _soak(url, server.pid, options, ledger, answers)
        left = _settled(url, server.pid, descriptors)
        if left > descriptors:
            ledger.wrong(f"{left} descriptors are open, {descriptors} were")
        again: dict[str, str] = {}
        Client(url, options.seed, ledger, again).learn()
        if again != answers:
            ledger.wrong("the questions have other answers afterwards")
        stats = _get(url, "/v1/stats")
        server.terminate()
        server.wait(SETTLE_SECONDS)
        log.seek(0)
        stderr = log.read()
    if server.returncode != 0:
        ledger.wrong(f"the server left with status {server.returncode}")
    if "Traceback" in stderr:
        ledger.wrong(f"the server logged: {stderr[-1500:]}")
    growth = (max(sizes[-5:]) - sizes[len(sizes) // 3]) / 1e6
    if growth > options.growth_mb:
        ledger.wrong(f"memory grew by {growth:.1f} MB")
    figures = _figures(ledger, stats, sizes, growth, descriptors, left)
    append_rows(
        "soak", [{"what": what, "value": value} for what, value in figures.items()],
        minutes=options.minutes, clients=options.clients, seed=options.seed,
    )  # fmt: skip
    for what, count in Counter(ledger.wrongs).most_common(20):
        print(f"WRONG ({count} times): {what}", file=sys.stderr)
    return 1 if ledger.wrongs else 0


def _soak(
    url: str, pid: int, options: argparse.Namespace, ledger: Ledger, answers: dict[str, str]
) -> list[int]:
    """Let the clients visit until time is up; the server's resident bytes, second by second."""
    end = time.monotonic() + 60 * options.minutes

    def keep_visiting(number: int) -> None:
        client = Client(url, options.seed * 1000 + number, ledger, answers)
        while time.monotonic() < end:
            client.visit()

    threads = [threading.Thread(target=keep_visiting, args=(n,)) for n in range(options.clients)]
    for thread in threads:
        thread.start()
    sizes = [_resident(pid)]
    while time.monotonic() < end:
        time.sleep(1)
        sizes.append(_resident(pid))
    for thread in threads:
        thread.join()
    return [*sizes, _resident(pid)]


def _figures(
    ledger: Ledger, stats: dict[str, Any], sizes: list[int], growth: float, before: int, after: int
) -> dict[str, object]:
    figures: dict[str, object] = {
        (f"{visit}: {status}" if status else visit): count
        for (visit, status), count in sorted(ledger.visits.items())
    }
    return {
        **figures,
        "visits": sum(ledger.visits.values()),
        **{f"requests {name}": count for name, count in stats["requests"].items()},
        "completion tokens": stats["completion_tokens"],
        "resident MB after a third of the time": f"{sizes[len(sizes) // 3] / 1e6:.1f}",
        "resident MB at the end": f"{sizes[-1] / 1e6:.1f}",
        "growth MB": f"{growth:.1f}",
        "descriptors before": before,
        "descriptors after": after,
        "wrong": len(ledger.wrongs),
    }


def _settled(url: str, pid: int, descriptors: int | None) -> int:
    """Wait until the engine is free and no connection is left over; the open descriptors then.

    Raises:
        TimeoutError: the engine was never free.
    """

    def free() -> bool:
        stats = _get(url, "/v1/stats")
        return stats["running"] is None and not stats["queue_depth"] and not stats["requests"]["open"]

    _wait(free, "the engine is never free")
    try:
        _wait(lambda: descriptors is None or _descriptors(pid) <= descriptors, "descriptors stay open")
    except TimeoutError:
        pass  # told by the caller, with the numbers
    return _descriptors(pid)


def _wait(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.2)


def _get(url: str, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(url + path, timeout=SETTLE_SECONDS) as answer:
        return dict(json.load(answer))


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(run_command("soak_server", main))
