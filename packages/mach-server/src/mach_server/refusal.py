"""Owns how an error becomes a whole answer."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mach_server.errors import ApiError, error_body_for
from mach_server.limits import Limits
from mach_server.request_body import discard_body
from mach_server.request_record import record_of


def error_response(error: ApiError, path: str) -> Response:
    """The answer that tells `error` in the form of the API that `path` belongs to."""
    return Response(
        error_body_for(path, error),
        status_code=error.status,
        headers=error.headers,
        media_type="application/json",
    )


async def refuse(error: ApiError, limits: Limits, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request with `error` without a look at its body, which is read and thrown away."""
    record_of(scope).error = error.code or error.type
    await discard_body(Request(scope, receive), limits)
    await error_response(error, scope["path"])(scope, receive, send)
