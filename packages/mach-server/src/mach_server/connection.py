"""Owns one client's connection: Hypercorn's, mended where it outlives its client, and shortened for reports.

Hypercorn 0.18 keeps a connection whose client has left until the keep-alive time is over, and for ever if the
client had sent its next request early (pipelining). Hypercorn is pinned, and tests count sockets.
"""

from __future__ import annotations

import asyncio

import h11
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import MAX_RECV, TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol

from mach_server.repeated_reports import Arrived, RepeatedReports, may_be_repeated


class Connection(TCPServer):
    """One connection, from its acceptance until either side closes it."""

    def __init__(
        self,
        app: ASGIWrapper,
        loop: asyncio.AbstractEventLoop,
        config: Config,
        context: WorkerContext,
        repeated: RepeatedReports,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Args: repeated: the short way; all else as Hypercorn takes it."""
        self._arrived, self._repeated = Arrived(), repeated
        self._answered = loop.time()  # when a request last went the short way, or the connection began
        super().__init__(app, loop, config, context, self._arrived.state, reader, writer)

    async def protocol_send(self, event: Event) -> None:
        """Send an event; after the client has left, an idle connection is not kept alive."""
        if not (isinstance(event, Updated) and self.reader.at_eof()):
            await super().protocol_send(event)

    async def _read_data(self) -> None:
        """Feed the protocol until the client stops sending, or the connection is lost meanwhile."""
        reading = asyncio.create_task(self._feed())
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

    async def _feed(self) -> None:
        while not self.reader.at_eof():
            try:
                data = await self.reader.read(MAX_RECV)
            except OSError:
                break
            self._arrived.head = None
            if self._idle and may_be_repeated(data):
                answer = self._repeated.answer(data, self.config.response_headers("h11"))
                if answer is not None:
                    self._answered = self.loop.time()
                    await self.protocol_send(RawData(answer))
                    continue
                self._arrived.head = data
            await self.protocol.handle(RawData(data))
        await self.protocol.handle(Closed())

    @property
    def _idle(self) -> bool:
        """Whether nothing of a request has come since the last one was answered."""
        protocol = self.protocol.protocol
        if not isinstance(protocol, H11Protocol):
            return False
        connection = protocol.connection
        return connection.our_state is h11.IDLE and not connection.trailing_data[0]

    async def _idle_timeout(self) -> None:
        """Close the connection when it has been idle for long: Hypercorn does not see the short way."""
        began = self.loop.time()
        while (left := max(began, self._answered) + self.config.keep_alive_timeout - self.loop.time()) > 0:
            try:
                await asyncio.wait_for(self.context.terminated.wait(), left)
                break
            except TimeoutError:
                continue
        await asyncio.shield(self._initiate_server_close())

    async def _lost(self) -> None:
        try:
            await self.writer.wait_closed()
        except OSError:
            return  # a reset, for instance
