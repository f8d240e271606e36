"""Owns the short way to a report that is asked for again with the very same bytes.

Monitors and clients poll `/health`, `/v1/models` or `/v1/stats` on a connection that they keep, each time
with the same bytes. To parse them and to pass guard after guard takes the event loop 150 µs, in which the
engine's thread cannot have Python's lock; the short way takes a tenth. So a head that has gone the whole way
(Hypercorn parsed it, every guard let it pass, the report was found) is remembered byte for byte, and the same
bytes lead straight to that report. Its content is made anew each time: only the way is remembered. All that
decides about the way is in the head, or does not change while the server is `ok`; in any other state every
request goes the long way.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from mach_server.inference_service import InferenceService
from mach_server.request_log import RequestLog
from mach_server.request_record import RequestRecord, record_of, request_id

MakeBody = Callable[[], Any]
"""A report's content, for JSON."""

HEADS = 64
"""Different heads that are remembered; when there are more, all are forgotten."""

HEAD_BYTES = 4096
"""Longest head that is remembered."""

_KEY = "mach.arrived"
_BLANK_LINE = re.compile(rb"\n\r?\n")
_CHANGES_THE_ANSWER = frozenset(
    {b"connection", b"content-length", b"expect", b"http2-settings", b"origin", b"te", b"transfer-encoding"}
    | {b"upgrade"}
)
"""Headers that may make the answer, or what becomes of the connection, another; apart from keep-alive."""


@dataclass(slots=True)
class Arrived:
    """What a connection was last sent.

    Attributes:
        head: the bytes, if they came to an idle connection and look like one whole GET; or None.
    """

    head: bytes | None = None

    @property
    def state(self) -> dict[str, Any]:
        """For the connection's ASGI scopes, in which the report's endpoint finds it."""
        return {_KEY: self}


@dataclass(frozen=True, slots=True)
class _Remembered:
    path: str
    make: MakeBody
    headers: tuple[tuple[bytes, bytes], ...]


def may_be_repeated(data: bytes) -> bool:
    """Whether `data` is one whole GET, which ends with its first blank line, as far as can be seen."""
    if len(data) > HEAD_BYTES or not data.startswith(b"GET "):
        return False
    end = _BLANK_LINE.search(data)
    return end is not None and end.end() == len(data)


class RepeatedReports:
    """Reports, and the heads that lead to them."""

    def __init__(self, service: InferenceService, log: RequestLog) -> None:
        """Args: service: whose state is asked; log: where answered requests are told."""
        self._service, self._log = service, log
        self._known: dict[bytes, _Remembered] = {}

    def endpoint(self, path: str, make: MakeBody) -> Callable[[Request], Awaitable[Response]]:
        """The report's endpoint, which remembers heads. Args: path: its route's; make: makes its content."""

        async def report(request: Request) -> Response:
            self._remember(request.scope, path, make)
            return Response(msgspec.json.encode(make()), media_type="application/json")

        return report

    def answer(self, head: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
        """The whole answer to `head`, from its status line on; None if it must go the long way.

        Args:
            head: all that an idle connection was sent.
            headers: those that the connection adds to every answer.
        """
        known = self._known.get(head)
        if known is None or self._service.state != "ok":
            return None
        record = RequestRecord(id=request_id(known.headers), method="GET", endpoint=known.path)
        try:
            body = msgspec.json.encode(known.make())
        except Exception:
            del self._known[head]
            return None  # the long way meets the same bug, and tells it
        record.status = 200
        self._log.told(record)
        lines = [
            b"HTTP/1.1 200 ",
            b"content-length: %d" % len(body),
            b"content-type: application/json",
            b"x-request-id: " + record.id.encode(),
            *(name + b": " + value for name, value in headers),
            b"",
            body,
        ]
        return b"\r\n".join(lines)

    def _remember(self, scope: Scope, path: str, make: MakeBody) -> None:
        arrived = scope.get("state", {}).get(_KEY)
        head = None if arrived is None else arrived.head
        if head is None or scope["method"] != "GET" or scope["http_version"] != "1.1":
            return
        assert record_of(scope).endpoint == path
        headers = tuple(scope["headers"])
        if any(
            name in _CHANGES_THE_ANSWER and (name, value.lower()) != (b"connection", b"keep-alive")
            for name, value in headers
        ):
            return
        if len(self._known) >= HEADS:
            self._known.clear()
        self._known[head] = _Remembered(path, make, headers)
