"""Owns the outermost step of every request: its id, its count, its log line, and the answer to a bug.

A line says what was asked for and how it went, never what was in it. Reports, which programs ask for many
times a second, share lines (`folded_lines`), unless they fail.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection
from typing import Any

from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mach_server.errors import GenerationError
from mach_server.folded_lines import FoldedLines
from mach_server.refusal import error_response
from mach_server.request_record import CLIENT_CLOSED, RequestRecord, attach, request_id

log = logging.getLogger("mach.server")
lines = logging.getLogger("mach.server.requests")
"""One record for each line, its facts in `request_facts`; INFO."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestLog:
    """Names, counts and logs requests.

    Attributes:
        counts: (endpoint, status) → requests answered; on the event loop alone.
    """

    def __init__(self, folded: Collection[str] = ()) -> None:
        """Args: folded: paths of routes whose answered requests share lines."""
        self.counts: Counter[tuple[str, int]] = Counter()
        self._folded, self._lines = frozenset(folded), FoldedLines(_write)
        self._exact: dict[str, str] = {}
        self._others: list[Route] = []

    def name_paths(self, routes: list[Route]) -> None:
        """Args: routes: whose paths are told; what matches none is `other`."""
        self._exact = {route.path: route.path for route in routes if "{" not in route.path}
        self._others = [route for route in routes if "{" in route.path]

    def around(self, app: ASGIApp) -> ASGIApp:
        """`app` behind this log."""

        async def logged(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            method = scope["method"] if scope["method"] in _METHODS else "other"
            record = RequestRecord(
                id=request_id(scope["headers"]), method=method, endpoint=self._endpoint(scope)
            )
            attach(record, scope)
            header = (b"x-request-id", record.id.encode())

            async def tell(message: Message) -> None:
                if message["type"] == "http.response.start":
                    record.status = message["status"]
                    message = {**message, "headers": [*message.get("headers", ()), header]}
                await send(message)

            try:
                await app(scope, receive, tell)
            except Exception:
                log.exception("request %s failed", record.id)
                if record.status is not None:
                    raise  # only a broken connection can tell the client
                error = GenerationError("the server failed; its log says why", code="internal_error")
                record.error = error.code
                await error_response(error, scope["path"])(scope, receive, tell)
            finally:
                self.told(record)

        return logged

    def told(self, record: RequestRecord) -> None:
        """Count and log a request at its end."""
        status = record.status or CLIENT_CLOSED
        self.counts[record.endpoint, status] += 1
        if not lines.isEnabledFor(logging.INFO):
            return
        if record.endpoint in self._folded and status < 400:
            self._lines.add(record)
        else:
            _write(record.facts())

    def flush(self) -> None:
        """Log what has been counted and not told; at the end, on the event loop."""
        self._lines.flush()

    def _endpoint(self, scope: Scope) -> str:
        known = self._exact.get(scope["path"])
        if known is not None:
            return known
        matching = (route.path for route in self._others if route.matches(scope)[0] is not Match.NONE)
        return next(matching, "other")


def _write(facts: dict[str, Any]) -> None:
    lines.info("request", extra={"request_facts": facts})
