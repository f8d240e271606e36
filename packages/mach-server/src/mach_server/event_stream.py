"""Owns a response of server-sent events on the ASGI side; what the events say is not its business."""

from __future__ import annotations

from starlette.types import Send

from mach_server.chat_response import event_of
from mach_server.errors import ApiError

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx would otherwise hold events back.
    (b"x-accel-buffering", b"no"),
]


class EventStream:
    """A response that starts with its first event.

    Attributes:
        started: whether the status line is out, so that an error can only be told as an event.
    """

    def __init__(self, send: Send) -> None:
        """Args: send: the ASGI callable of the request."""
        self.started = False
        self._send = send

    async def send(self, events: bytes) -> None:
        """Send whole events; waits while the client is slow."""
        if not self.started:
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def end(self) -> None:
        """Close the stream."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: ApiError) -> None:
        """Tell `error` as the last event, and close the stream."""
        await self.send(event_of(error.body()))
        await self.end()
