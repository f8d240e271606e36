"""Owns a server as a process of its own over a bank that always reads, and clients that know better."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

SECONDS = 40.0
"""How long what must come about is waited for; far more than it takes."""

PROMPTS = (
    "import os",
    "class Stack:\n    def push(",
    "def add(a, b):\n",
    "\n".join(f"x{n} = {n} * {n}" for n in range(20)),
)


def eventually(condition: Callable[[], Any]) -> Any:
    """The first true value of `condition`; fails when none comes in time."""
    deadline = time.monotonic() + SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)
    return value


class FaultyServing:
    """A running server and its right answers.

    Attributes:
        process: the server's.
        client: for requests to it.
        counts: how the answers to `load` ended: `right`, or an error's message without its numbers.
    """

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        """Of a server that is ready, on a disk that is sound until now."""
        self.process = process
        self.client = httpx.Client(base_url=url, timeout=SECONDS)
        self.counts: Counter[str] = Counter()
        self._failures: list[BaseException] = []
        self._right = [self.ask(prompt).json()["choices"][0]["text"] for prompt in PROMPTS]

    def ask(self, prompt: str = PROMPTS[0], **fields: Any) -> httpx.Response:
        """One answer."""
        body = {"model": "checkpoint", "prompt": prompt, "max_tokens": 6, "temperature": 0, **fields}
        return self.client.post("/v1/completions", json=body)

    def get(self, path: str) -> httpx.Response:
        """A report."""
        return self.client.get(path)

    def stats(self) -> dict[str, Any]:
        """`/v1/stats`."""
        told: dict[str, Any] = self.get("/v1/stats").json()
        return told

    def answers_are_right(self) -> None:
        """Every prompt has its answer again."""
        for prompt, right in zip(PROMPTS, self._right, strict=True):
            answer = self.ask(prompt)
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["text"] == right

    @contextmanager
    def load(self, clients: int = 4) -> Iterator[None]:
        """Clients that ask one thing after another, streamed or not, and check each answer.

        Raises:
            AssertionError: an answer was neither right nor an error that says what is wrong.
        """
        ending = threading.Event()

        def visit(number: int) -> None:
            try:
                while not ending.is_set():
                    number += 1
                    self.counts[self._outcome(number)] += 1
            except BaseException as error:
                self._failures.append(error)

        threads = [threading.Thread(target=visit, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ending.set()
            for thread in threads:
                thread.join()
        self._raise_failure()

    def until(self, name: str, times: int = 3) -> None:
        """Wait until so many more answers of `load` have ended in `name`, a regular expression."""

        def found() -> int:
            self._raise_failure()
            return sum(count for text, count in dict(self.counts).items() if re.search(name, text))

        before = found()
        try:
            eventually(lambda: found() >= before + times)
        except AssertionError as error:
            raise AssertionError(f"{name}: among {dict(self.counts)}") from error

    def _raise_failure(self) -> None:
        if self._failures:
            raise self._failures[0]

    def _outcome(self, number: int) -> str:
        which, stream = number % len(PROMPTS), number % 3 == 0
        answer, right = self.ask(PROMPTS[which], stream=stream), self._right[which]
        if not stream and answer.status_code == 200:
            assert answer.json()["choices"][0]["text"] == right
            return "right"
        if not stream or answer.status_code != 200:
            assert answer.status_code == 500, answer.text
            return _without_numbers(answer.json()["error"])
        lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
        events = [json.loads(line) for line in lines if line != "[DONE]"]
        text = "".join(c["text"] for event in events for c in event.get("choices", ()))
        if "error" in events[-1]:
            assert right.startswith(text)
            return _without_numbers(events[-1]["error"])
        assert (text, lines[-1]) == (right, "[DONE]")
        return "right"


@contextmanager
def serving(
    checkpoint: Path,
    *arguments: str,
    environment: dict[str, str] | None = None,
    gb: float | None = 0.0035,
    enter: Callable[[], None] | None = None,
) -> Iterator[FaultyServing]:
    """A server over `checkpoint` (a directory named `checkpoint`) whose bank holds few of its experts.

    Args:
        checkpoint: what is served.
        arguments: more flags.
        environment: the server's.
        gb: of its bank; None is what it takes by itself.
        enter: called in the process before it begins.

    At the end it must drain, leave with status 0 and have logged no traceback.
    """
    log = checkpoint.parent / "stderr"
    command = [sys.executable, "-m", "mach_server.serve_command", str(checkpoint), "--streaming"]
    command += [] if gb is None else ["--expert-cache-gb", str(gb)]
    command += ["--port", "0", *arguments]
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment, preexec_fn=enter
        ) as process,
    ):
        try:
            lines = (re.search(r"ready url=(\S+)", line) for line in process.stdout or ())
            url = next((found[1] for found in lines if found), None)
            assert url, log.read_text()
            server = FaultyServing(process, url)
            try:
                yield server
            finally:
                server.client.close()
            if process.poll() is None:
                process.terminate()
            assert process.wait(SECONDS) == 0
        finally:
            if process.poll() is None:
                process.kill()
    assert "Traceback" not in log.read_text()


def _without_numbers(error: dict[str, Any]) -> str:
    assert error["type"] == "server_error", error
    return re.sub(r"\d+", "N", error["message"])
