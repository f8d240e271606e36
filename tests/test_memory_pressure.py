"""A server whose memory limit is lowered while it answers gives memory back, lives on, and says the same."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from memory_group import MemoryGroup, memory_group

from mach.io.checkpoint_path import resolve_checkpoint
from mach_store import page_return
from mach_store.synthetic_checkpoint import qwen3_moe_config, write_synthetic_checkpoint

CONFIG = qwen3_moe_config(
    hidden=512, layers=4, experts=64, expert_width=768, head_dim=64, context=2048, group_size=64
)
LIMIT = 900_000_000
SECONDS = 60.0
pytestmark = pytest.mark.skipif(page_return.refusal() is not None, reason=str(page_return.refusal()))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pressed") / "checkpoint"
    write_synthetic_checkpoint(directory, CONFIG, tokenizer_from=resolve_checkpoint("mach-pico"))
    return directory


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    with memory_group(LIMIT) as made:
        yield made


@pytest.fixture
def server(checkpoint: Path, group: MemoryGroup, tmp_path: Path) -> Iterator[tuple[httpx.Client, Path]]:
    """A client of a server inside the group, and the file of its log."""
    log = tmp_path / "stderr"
    command = [
        sys.executable,
        "-m",
        "mach_server.serve_command",
        str(checkpoint),
        "--streaming",
        "--port",
        "0",
    ]
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, preexec_fn=group.enter
        ) as process,
    ):
        try:
            lines = process.stdout or ()
            url = next((found[1] for line in lines if (found := re.search(r"ready url=(\S+)", line))), None)
            assert url, log.read_text()
            with httpx.Client(base_url=f"{url}/v1", timeout=SECONDS) as client:
                yield client, log
        finally:
            process.terminate()
            status = process.wait(SECONDS)
    assert status == 0, log.read_text()


def answer(client: httpx.Client, tokens: int) -> str:
    body = {
        "model": client.get("/models").json()["data"][0]["id"],
        "prompt": "def f(x):",
        "max_tokens": tokens,
    }
    # A random model may end where it likes: its end tokens are forbidden.
    body["logit_bias"] = {str(token): -100 for token in (0, 1, 2, 3)}
    result = client.post("/completions", json=body | {"temperature": 0})
    assert result.status_code == 200, result.text
    return result.json()["choices"][0]["text"]


def memory_of(client: httpx.Client) -> dict:
    return client.get("/stats").json()["memory"]


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def test_a_limit_that_is_lowered_while_it_answers_is_survived(server, group: MemoryGroup) -> None:
    client, log = server
    expected = answer(client, 400)
    before, used = memory_of(client), group.used
    reserve = before["pressure"]["reserve_bytes"]
    assert before["pressure"]["watching"]
    assert before["bank_bytes"] == before["bank_declared_bytes"]
    stop, answers = threading.Event(), []

    def keep_answering() -> None:
        while not stop.is_set():
            answers.append(answer(client, 400))

    answering = threading.Thread(target=keep_answering)
    answering.start()
    try:
        for _ in range(3):
            size = memory_of(client)["bank_bytes"]
            group.limit = group.used + reserve // 2
            until(lambda size=size: memory_of(client)["bank_bytes"] < size, log.read_text())
        until(lambda: group.used < used - 2 * reserve, "the memory is not given back")
        # The limit is now one that the server as it was could not have lived in.
        group.limit = used - reserve
    finally:
        stop.set()
        answering.join(SECONDS)
    assert answers and all(text == expected for text in answers)
    after = memory_of(client)
    assert after["bank_bytes"] < before["bank_bytes"] == after["bank_declared_bytes"]
    assert after["pressure"]["bank_shrinks"] >= 3
    assert group.kills == 0
    assert "the expert bank shrinks from" in log.read_text()
    assert answer(client, 400) == expected


def test_an_idle_server_gives_memory_back_too(server, group: MemoryGroup) -> None:
    client, _ = server
    expected, size = answer(client, 20), memory_of(client)["bank_bytes"]
    group.limit = group.used + memory_of(client)["pressure"]["reserve_bytes"] // 2
    until(lambda: memory_of(client)["bank_bytes"] < size, "an idle server does nothing")
    assert answer(client, 20) == expected
    assert group.kills == 0
