"""Owns the reading of a request's body under the server's limits, and the watch for a client that leaves."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from mach_server.errors import BodyTimeoutError, BodyTooLargeError
from mach_server.limits import Limits


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body.

    Raises:
        BodyTooLargeError: it is longer than allowed. Its rest has been read and thrown away, up to a bound.
        BodyTimeoutError: it did not arrive in time.
        ClientDisconnect: the client left.
    """
    try:
        async with asyncio.timeout(limits.body_seconds):
            return await _read(request, limits)
    except TimeoutError as error:
        raise BodyTimeoutError(f"the body did not arrive within {limits.body_seconds:g} s") from error


async def discard_body(request: Request, limits: Limits) -> None:
    """Read and throw away a body that is not wanted, so that the client gets to reading its answer."""
    try:
        async with asyncio.timeout(limits.body_seconds):
            total = 0
            async for piece in request.stream():
                total += len(piece)
                if total > limits.discarded_bytes:
                    return
    except (TimeoutError, ClientDisconnect):
        return


async def disconnected(receive: Receive) -> None:
    """Return when the client has closed its connection; call it only after the body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read(request: Request, limits: Limits) -> bytes:
    pieces: list[bytes] = []
    total = 0
    async for piece in request.stream():
        total += len(piece)
        if total <= limits.body_bytes:
            pieces.append(piece)
            continue
        pieces.clear()
        if total > limits.discarded_bytes:
            break
    if total > limits.body_bytes:
        raise BodyTooLargeError(
            f"the body is longer than {limits.body_bytes} bytes", code="request_too_large"
        )
    return b"".join(pieces)
