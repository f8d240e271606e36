"""Owns what is known of one HTTP request, from its arrival to its log line: never its prompt or answer."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.types import Scope

from mach_server.expert_io import ExpertIO

_KEY = "mach.record"
_GIVEN = re.compile(rb"[A-Za-z0-9._-]{1,128}")

CLIENT_CLOSED = 499
"""What stands for a status that nobody was there to receive; it is never sent."""


@dataclass(slots=True, kw_only=True, eq=False)
class RequestRecord:
    """One request. Fields that stay None have nothing to say.

    Attributes:
        id: the client's X-Request-Id, or one made here.
        method: of HTTP.
        endpoint: the route's path; never the client's own text.
        began: `time.perf_counter()` of its arrival.
        status: of the answer, once its status line is out.
        prompt_tokens: of the rendered prompt.
        completion_tokens: generated so far.
        first_token: `time.perf_counter()` of the first token.
        finish: why the answer ended: a finish reason, or `client_left`.
        error: the code of the error that was told.
        expert_io: what the experts cost, of an answer that reached its end.
    """

    id: str
    method: str
    endpoint: str
    began: float = field(default_factory=time.perf_counter)
    status: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token: float | None = None
    finish: str | None = None
    error: str | None = None
    expert_io: ExpertIO | None = None

    def facts(self) -> dict[str, Any]:
        """The log line's keys and values, those that are known; call it at the end of the request."""
        first = None if self.first_token is None else round(1000 * (self.first_token - self.began), 3)
        known = {
            "id": self.id,
            "method": self.method,
            "endpoint": self.endpoint,
            "status": CLIENT_CLOSED if self.status is None else self.status,
            "duration_ms": round(1000 * (time.perf_counter() - self.began), 3),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "first_token_ms": first,
            "finish": self.finish,
            "error": self.error,
            **({} if self.expert_io is None else msgspec.structs.asdict(self.expert_io)),
        }
        return {name: value for name, value in known.items() if value is not None}


def attach(record: RequestRecord, scope: Scope) -> None:
    """Make `record` the one of an ASGI request."""
    scope[_KEY] = record


def record_of(scope: Scope) -> RequestRecord:
    """The record of an ASGI request."""
    record = scope[_KEY]
    assert isinstance(record, RequestRecord), "every request passes the request log first"
    return record


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's X-Request-Id if it is one of 1 to 128 letters, digits, `.`, `_`, `-`; or a new one."""
    given = [value for name, value in headers if name == b"x-request-id"]
    if len(given) == 1 and _GIVEN.fullmatch(given[0]):
        return given[0].decode()
    return f"req_{uuid.uuid4().hex}"
