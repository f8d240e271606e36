"""Owns what one client of the soak test does: each visit is one way in which clients behave."""

from __future__ import annotations

import http.client
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

SECONDS = 120.0
CHAT = "/v1/chat/completions"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
COLOUR = {
    "type": "json_schema",
    "json_schema": {"name": "colour", "schema": {"type": "string", "enum": ["red", "green", "blue"]}},
}
MALFORMED: tuple[tuple[str, bytes, int], ...] = (
    (CHAT, b"", 400),
    (CHAT, b"{", 400),
    (CHAT, b"\xff\xfe{}", 400),
    (CHAT, b"[" * 10_000, 400),
    (CHAT, b'{"model": "mach-pico", "messages": []}', 400),
    (CHAT, b'{"model": "other", "messages": [{"role": "user", "content": "x"}]}', 404),
    (
        CHAT,
        b'{"model": "mach-pico", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        400,
    ),
    (CHAT, b'{"model": "mach-pico", "messages": [{"role": "user", "content": "x"}], "no_field": 1}', 400),
    (CHAT, b'{"a": "' + b"x" * (9 << 20) + b'"}', 413),
    ("/v1/completions", b'{"model": "mach-pico", "prompt": "x", "n": 7}', 400),
    ("/v1/responses", b'{"model": "mach-pico"}', 400),
    ("/v1/messages", b'{"model": "mach-pico", "messages": []}', 400),
    ("/v1/embeddings", b"{}", 404),
)
REPORTS = ("/", "/v1/models", "/v1/stats", "/v1/cache/stats", "/v1/cache/experts", "/v1/capabilities")


class Ledger:
    """What all clients saw; one lock.

    Attributes:
        visits: (visit, status) → how often; a status of 0 is a connection that the client left.
        wrongs: what must not have been: a few examples each.
    """

    def __init__(self) -> None:
        self.visits: Counter[tuple[str, int]] = Counter()
        self.wrongs: list[str] = []
        self._lock = threading.Lock()

    def saw(self, visit: str, status: int) -> None:
        """Count one answer; 5xx but 503 is wrong."""
        with self._lock:
            self.visits[visit, status] += 1
        if status >= 500 and status != 503:
            self.wrong(f"{visit}: status {status}")

    def wrong(self, what: str) -> None:
        """Note something that must not be."""
        with self._lock:
            self.wrongs.append(what[:400])


def questions() -> dict[str, dict[str, Any]]:
    """Requests whose answers are always the same: greedy ones, and drawn ones with a seed."""
    told: dict[str, dict[str, Any]] = {}
    for number, text in enumerate(("def reverse(s):", "import numpy", "class Stack:", "Count to ten.")):
        messages = [{"role": "user", "content": text}]
        plain = {"messages": messages, "max_tokens": 16 + 8 * number, "reasoning_effort": "none"}
        told[f"greedy {number}"] = {**plain, "temperature": 0}
        told[f"drawn {number}"] = {**plain, "temperature": 0.9, "seed": 7 + number}
    weather = [{"role": "user", "content": "What is the weather in Paris?"}]
    told["tool"] = {
        "messages": weather, "tools": [TOOL], "tool_choice": "required", "temperature": 0,
        "max_tokens": 200, "reasoning_effort": "none",
    }  # fmt: skip
    told["schema"] = {
        "messages": weather, "response_format": COLOUR, "temperature": 0, "max_tokens": 20,
        "reasoning_effort": "none",
    }  # fmt: skip
    return {name: {"model": "mach-pico", **fields} for name, fields in told.items()}


class Client:
    """One client with its own random numbers."""

    def __init__(self, url: str, seed: int, ledger: Ledger, answers: dict[str, str]) -> None:
        """Args: answers: question → what its answer must be; filled by `learn` before the soak."""
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        self._address = (parts.hostname, parts.port)
        self._random, self._ledger, self._answers = random.Random(seed), ledger, answers
        self._questions = questions()

    def learn(self) -> None:
        """Ask every question once, alone."""
        for name, fields in self._questions.items():
            status, body = self._post(CHAT, json.dumps(fields).encode())
            if status != 200:
                raise RuntimeError(f"{name}: {status} {body[:300]!r}")
            self._answers[name] = _essence([json.loads(body)["choices"][0]["message"]])

    def visit(self) -> None:
        """One random visit."""
        visits: tuple[tuple[Callable[[], None], int], ...] = (
            (self.ask_whole, 5), (self.ask_streamed, 5), (self.look, 3), (self.send_nonsense, 3),
            (self.leave, 4), (self.read_slowly, 1), (self.burst, 1),
        )  # fmt: skip
        (chosen,) = self._random.choices([one for one, _ in visits], [weight for _, weight in visits])
        try:
            chosen()
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            self._ledger.wrong(f"{chosen.__name__}: {type(error).__name__}: {error}")

    def ask_whole(self) -> None:
        """A question, its answer in one piece."""
        name = self._random.choice(list(self._questions))
        status, body = self._post(CHAT, json.dumps(self._questions[name]).encode())
        self._ledger.saw("whole", status)
        if status == 200:
            self._compare(name, [json.loads(body)["choices"][0]["message"]])
        elif status not in (429, 503):
            self._ledger.wrong(f"whole {name}: {status} {body[:200]!r}")

    def ask_streamed(self) -> None:
        """A question, its answer in pieces."""
        name = self._random.choice(list(self._questions))
        status, body = self._post(CHAT, json.dumps({**self._questions[name], "stream": True}).encode())
        self._ledger.saw("streamed", status)
        if status == 200:
            lines = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
            if lines[-1] != b"[DONE]":
                self._ledger.wrong(f"streamed {name}: no end: {body[-200:]!r}")
            events = [json.loads(line) for line in lines[:-1]]
            self._compare(name, [choice["delta"] for event in events for choice in event["choices"]])
        elif status not in (429, 503):
            self._ledger.wrong(f"streamed {name}: {status} {body[:200]!r}")

    def look(self) -> None:
        """A report, or the status page."""
        path = self._random.choice(REPORTS)
        with self._connection() as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
        self._ledger.saw("report", answer.status)
        if answer.status != 200:
            self._ledger.wrong(f"{path}: {answer.status}")

    def send_nonsense(self) -> None:
        """A body that must be refused."""
        path, body, expected = self._random.choice(MALFORMED)
        status, told = self._post(path, body)
        self._ledger.saw("malformed", status)
        if status not in (expected, 429):
            self._ledger.wrong(f"malformed {body[:60]!r}: {status} instead of {expected}: {told[:200]!r}")

    def leave(self) -> None:
        """Close the connection somewhere between the first byte of the request and the answer's end."""
        fields = {**self._questions["greedy 0"], "max_tokens": 400, "stream": self._random.random() < 0.7}
        body = json.dumps(fields).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        request = head + body
        stage = self._random.choice(("connected", "in the request", "queued", "in the answer"))
        with socket.create_connection(self._address, SECONDS) as connection:
            if stage == "in the request":
                connection.sendall(request[: self._random.randrange(1, len(request))])
            elif stage != "connected":
                connection.sendall(request)
            if stage == "queued":
                time.sleep(self._random.random() * 0.3)
            elif stage == "in the answer":
                connection.settimeout(self._random.random() * 5)
                try:
                    for _ in range(self._random.randrange(1, 20)):
                        connection.recv(512)
                except TimeoutError:
                    pass
            if self._random.random() < 0.3:  # a reset instead of an orderly end
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._ledger.saw(f"left, {stage}", 0)

    def read_slowly(self) -> None:
        """A stream of which a few bytes are read now and then."""
        fields = {**self._questions["greedy 1"], "max_tokens": 120, "stream": True}
        with self._connection() as connection:
            connection.request("POST", CHAT, json.dumps(fields))
            answer = connection.getresponse()
            until = time.monotonic() + 5
            while answer.status == 200 and time.monotonic() < until and answer.read(200):
                time.sleep(0.05)
        self._ledger.saw("slow reader", answer.status)

    def burst(self) -> None:
        """More requests at once than the queue holds."""
        fields = {**self._questions["greedy 0"], "max_tokens": 2}
        body = json.dumps(fields).encode()

        def one() -> None:
            try:
                status, told = self._post(CHAT, body)
            except (OSError, http.client.HTTPException) as error:
                self._ledger.wrong(f"burst: {type(error).__name__}: {error}")
                return
            self._ledger.saw("burst", status)
            if status not in (200, 429, 503):
                self._ledger.wrong(f"burst: {status} {told[:200]!r}")

        threads = [threading.Thread(target=one) for _ in range(48)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _compare(self, name: str, parts: list[dict[str, Any]]) -> None:
        found = _essence(parts)
        if found != self._answers[name]:
            self._ledger.wrong(f"{name}: {found!r} instead of {self._answers[name]!r}")

    def _post(self, path: str, body: bytes) -> tuple[int, bytes]:
        with self._connection() as connection:
            try:
                connection.request("POST", path, body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the server may have answered a body that is too long before all of it was sent
            answer = connection.getresponse()
            return answer.status, answer.read()

    @contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection(*self._address, timeout=SECONDS)
        try:
            yield connection
        finally:
            connection.close()


def _essence(parts: list[dict[str, Any]]) -> str:
    """Text and calls of a message or of a stream's deltas, without their random ids."""
    text = "".join(part.get("content") or "" for part in parts)
    calls: dict[int, list[str]] = {}
    for part in parts:
        for number, call in enumerate(part.get("tool_calls") or ()):
            function = calls.setdefault(call.get("index", number), ["", ""])
            function[0] += call["function"].get("name") or ""
            function[1] += call["function"].get("arguments") or ""
    return json.dumps([text, sorted(calls.items())])
