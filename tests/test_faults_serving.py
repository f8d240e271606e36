"""A server whose disk fails, stalls or is tampered with while clients are answered, over real sockets."""

import http.client
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from disk_faults import DiskFaults, possible
from faulty_serving import PROMPTS, FaultyServing, eventually, serving

from mach.io.checkpoint_path import resolve_checkpoint
from mach_store.engine_checkpoint import write_stacked_checkpoint

on_linux = pytest.mark.skipif(not possible(), reason="LD_PRELOAD")
REPORTS = ("/health", "/v1/models", "/v1/stats", "/v1/cache/stats", "/v1/cache/experts", "/metrics", "/")
READ = r"layer_N.bin: layer N, expert N: cannot be read: .*Input/output error"
ENDED = r"layer_N.bin: layer N, expert N: cannot be read: .*the file ended"
WRITTEN = (
    r"safetensors: layer N, expert N: cannot be read: the file was written to .* load the checkpoint again"
)
CORRUPT = r"layer_N.bin: layer N, expert N: the bytes on disk do not match their checksum"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the reference checkpoint that a test may damage."""
    return Path(shutil.copytree(resolve_checkpoint("mach-pico"), tmp_path / "checkpoint"))


@pytest.fixture
def faults(tmp_path: Path) -> Iterator[DiskFaults]:
    faults = DiskFaults(tmp_path)
    yield faults
    faults.set()  # nobody may wait for ever


@on_linux
def test_clients_of_a_failing_disk_get_right_answers_or_are_told_what_failed(checkpoint, faults) -> None:
    with serving(checkpoint, environment=faults.environment) as server:
        with server.load():
            server.until("right")
            for seed, (settings, outcome) in enumerate(
                (
                    ({"fails": 1000}, READ),
                    ({"ends": 1000}, ENDED),
                    ({"flips": 1000}, CORRUPT),
                    ({"interrupts": 300, "shortened": 300, "delays": 100, "delay_us": 500}, "^right$"),
                    ({"fails": 3, "ends": 3, "flips": 3}, "layer_N.bin"),
                    ({}, "^right$"),
                )
            ):
                faults.set(seed=seed, **settings)
                server.until(outcome)
                assert server.get("/health").status_code == 200
        server.answers_are_right()
        told = server.stats()["requests"]
        assert told["failed"] == sum(count for name, count in server.counts.items() if name != "right")
        assert told["open"] == 0
    assert all(faults.count(kind) for kind in ("failed", "ended", "flipped", "interrupted", "cut", "delayed"))


@on_linux
def test_while_the_disk_stalls_all_but_its_answers_goes_on_and_who_leaves_frees_the_engine(
    checkpoint, faults
) -> None:
    with serving(checkpoint, environment=faults.environment) as server:
        faults.set(stalled=1)
        with asking(server):
            eventually(lambda: faults.count("waiting"))
            with asking(server):
                eventually(lambda: server.stats()["queue_depth"] == 1)
                for path in REPORTS:
                    assert server.get(path).status_code == 200, path
                told = server.client.post(
                    "/v1/messages/count_tokens",
                    json={"model": "checkpoint", "messages": [{"role": "user", "content": "x"}]},
                )
                assert told.json()["input_tokens"] > 0
            eventually(lambda: server.stats()["requests"]["withdrawn"] == 1)  # the second has left the queue
            assert server.stats()["running"]
        assert faults.count("waiting")  # the first has left, and its read still hangs
        faults.set()
        eventually(lambda: server.stats()["requests"]["cancelled"] == 1)
        assert server.stats()["running"] is None, "the count goes up when nothing runs any more"
        server.answers_are_right()


@on_linux
def test_an_answer_that_waits_for_the_disk_too_long_is_ended_and_others_come(checkpoint, faults) -> None:
    with serving(checkpoint, "--request-timeout", "2", environment=faults.environment) as server:
        faults.set(stalled=1)
        for _ in range(2):  # the second waits for an engine that hangs
            answer = server.ask()
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "request_timeout")
        assert server.get("/health").status_code == 200
        faults.set()
        eventually(lambda: server.stats()["running"] is None)
        server.answers_are_right()


@on_linux
def test_a_stalled_disk_does_not_keep_a_server_from_ending(checkpoint, faults) -> None:
    with serving(checkpoint, "--grace-seconds", "0.1", environment=faults.environment) as server:
        faults.set(stalled=1)
        with asking(server):
            eventually(lambda: faults.count("waiting"))
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(60) == 0
        assert faults.count("waiting")


def replaced(sidecar: Path) -> None:
    for path in sidecar.glob("layer_*.bin"):
        other = path.with_suffix(".new")
        other.write_bytes(bytes(path.stat().st_size))
        other.rename(path)


def removed(sidecar: Path) -> None:
    shutil.rmtree(sidecar.parent)


def truncated(sidecar: Path) -> None:
    for path in sidecar.glob("layer_*.bin"):
        with path.open("r+b") as handle:
            handle.truncate(5000)


def overwritten(sidecar: Path) -> None:
    for path in sidecar.glob("layer_*.bin"):
        size = path.stat().st_size
        with path.open("r+b") as handle:
            handle.write(bytes(range(256)) * (size // 256) + bytes(size % 256))


def emptied(sidecar: Path) -> None:
    for path in sidecar.glob("layer_*.bin"):
        path.write_bytes(b"")


@pytest.mark.parametrize("damage", [replaced, removed])
def test_files_that_are_replaced_or_removed_while_serving_change_no_answer(
    checkpoint: Path, damage: Callable[[Path], None]
) -> None:
    """An open descriptor is the old file's."""
    with serving(checkpoint) as server:
        with server.load():
            server.until("right")
            damage(checkpoint / "expert_sidecar")
            server.until("right", times=8)
        assert set(server.counts) == {"right"}
        server.answers_are_right()


@pytest.mark.parametrize(
    ("damage", "outcome"), [(truncated, ENDED), (overwritten, CORRUPT), (emptied, ENDED)]
)
def test_files_that_change_under_a_server_fail_the_answers_that_need_them_and_no_later_one(
    checkpoint: Path, damage: Callable[[Path], None], outcome: str
) -> None:
    sidecar = checkpoint / "expert_sidecar"
    whole = {path: path.read_bytes() for path in sidecar.glob("layer_*.bin")}
    with serving(checkpoint) as server:
        with server.load():
            server.until("right")
            damage(sidecar)
            server.until(outcome)
            assert server.get("/health").status_code == 200
            for path, content in whole.items():
                with path.open("r+b") as handle:  # into the same file, as it was
                    handle.write(content)
            server.until("^right$", times=8)
        server.answers_are_right()


def test_files_without_checksums_are_not_read_once_they_were_written_to(tmp_path: Path) -> None:
    """A stacked checkpoint: nobody could tell wrong experts from right ones."""
    checkpoint = tmp_path / "checkpoint"
    write_stacked_checkpoint(resolve_checkpoint("mach-pico"), checkpoint)
    files = {path: path.read_bytes() for path in checkpoint.glob("*.safetensors")}
    with serving(checkpoint) as server:
        with server.load():
            server.until("right")
            for path, content in files.items():
                with path.open("r+b") as handle:  # weights that are plausible, but others
                    handle.seek(len(content) // 2)
                    handle.write(content[: len(content) // 4])
            server.until(WRITTEN)
        assert server.get("/health").status_code == 200
        assert server.ask(PROMPTS[2]).status_code == 500


@contextmanager
def asking(server: FaultyServing) -> Iterator[None]:
    """A client whose request is on its way while the block runs, and who leaves at its end."""
    base = server.client.base_url
    connection = http.client.HTTPConnection(base.host, base.port, timeout=60)
    body = {"model": "checkpoint", "prompt": PROMPTS[0], "max_tokens": 6}
    connection.request("POST", "/v1/completions", json.dumps(body))
    try:
        yield
    finally:
        connection.close()
