"""Owns a response of server-sent events on the ASGI side; what the events say is not its business."""

from __future__ import annotations

from starlette.types import Send

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

    async def close_with(self, events: bytes) -> None:
        """Send the last events, and close the stream."""
        await self.send(events)
        await self.end()


DONE = b"data: [DONE]\n\n"
"""OpenAI's mark of a stream's end."""


def data_event(payload: bytes) -> bytes:
    """An event without a name. Args: payload: JSON, which holds no newline."""
    return b"data: " + payload + b"\n\n"


def named_event(name: str, payload: bytes) -> bytes:
    """An event with a name. Args: payload: JSON, which holds no newline."""
    return b"event: " + name.encode() + b"\ndata: " + payload + b"\n\n"
