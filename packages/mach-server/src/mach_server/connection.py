"""Owns one client's connection: Hypercorn's, mended where it outlives its client.

Hypercorn 0.18 keeps a connection whose client has left until the keep-alive time is over, and for ever if the
client had sent its next request early (pipelining). Hypercorn is pinned, and tests count sockets.
"""

from __future__ import annotations

import asyncio

from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.events import Closed, Event, Updated


class Connection(TCPServer):
    """One connection, from its acceptance until either side closes it."""

    async def protocol_send(self, event: Event) -> None:
        """Send an event; after the client has left, an idle connection is not kept alive."""
        if not (isinstance(event, Updated) and self.reader.at_eof()):
            await super().protocol_send(event)

    async def _read_data(self) -> None:
        """Feed the protocol until the client stops sending, or the connection is lost meanwhile."""
        reading = asyncio.create_task(super()._read_data())
        lost = asyncio.create_task(self._lost())
        try:
            await asyncio.wait((reading, lost), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
            else:
                await self.protocol.handle(Closed())
        finally:
            for task in (reading, lost):
                task.cancel()
            await asyncio.gather(reading, lost, return_exceptions=True)
            await self.idle_task.stop()

    async def _lost(self) -> None:
        try:
            await self.writer.wait_closed()
        except OSError:
            return  # a reset, for instance
