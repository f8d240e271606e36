"""Owns the streaming client of the server benchmarks: as little work as possible beside what is measured.

A stream is only received and time-stamped while it runs, and parsed afterwards.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTimes:
    """When the pieces of one streamed completion came.

    Attributes:
        first_seconds: from sending the request to the first piece of text.
        seconds: from the first piece of text to the last event with any.
        tokens: of the answer, as the server's usage says.
        text: the answer.
        stamps: for each piece of text its arrival (`time.monotonic_ns()`) and the piece.
    """

    first_seconds: float
    seconds: float
    tokens: int
    text: str
    stamps: tuple[tuple[int, str], ...]

    @property
    def tokens_per_second(self) -> float:
        """Over the tokens after the first."""
        return (self.tokens - 1) / self.seconds


def stream_completion(url: str, **fields: Any) -> StreamTimes:
    """Post to `/v1/completions` with `stream`, and read to the end.

    Raises:
        RuntimeError: the server answered with an error.
    """
    body = json.dumps({**fields, "stream": True, "stream_options": {"include_usage": True}}).encode()
    pieces: list[tuple[int, bytes]] = []
    with open_connection(url) as connection:
        head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        began = time.monotonic_ns()
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        tail = b""
        while b"[DONE]" not in tail:
            piece = connection.recv(1 << 16)
            if not piece or (not pieces and b" 200 " not in piece[:20]):
                raise RuntimeError(f"{url}: {(tail + piece)[:400]!r}")
            pieces.append((time.monotonic_ns(), piece))
            tail = tail[-16:] + piece
    return _times(began, pieces)


def _times(began: int, pieces: list[tuple[int, bytes]]) -> StreamTimes:
    stamps: list[tuple[int, str]] = []
    tokens, rest = 0, b""
    for moment, piece in pieces:
        lines = (rest + piece).split(b"\n")
        rest = lines.pop()
        for line in lines:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            for choice in event["choices"]:
                if choice["text"]:
                    stamps.append((moment, choice["text"]))
    first, last = stamps[0][0], stamps[-1][0]
    return StreamTimes(
        first_seconds=(first - began) / 1e9,
        seconds=(last - first) / 1e9,
        tokens=tokens,
        text="".join(text for _, text in stamps),
        stamps=tuple(stamps),
    )


def open_connection(url: str) -> socket.socket:
    """A connection that sends at once."""
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    connection = socket.create_connection((parts.hostname, parts.port), SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
