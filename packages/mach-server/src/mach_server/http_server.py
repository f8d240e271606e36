"""Owns the socket, its connections, and the orderly end: refuse, let finish, cancel, close."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config

from mach_server.access import Access
from mach_server.app import RequestGate, create_app
from mach_server.connection import Connection
from mach_server.inference_service import InferenceService
from mach_server.listening_socket import ListeningSocket, bind_error
from mach_server.repeated_reports import RepeatedReports

KEEP_ALIVE_SECONDS = 75.0
"""Longer than clients keep idle connections, so that it is they who close them and no request is lost."""

BACKLOG = 128
"""Connections that the system accepts before this process does."""

POLL_SECONDS = 0.02


class HttpServer:
    """One service behind one socket, from the load of its model to the drain."""

    def __init__(
        self, service: InferenceService, listening: ListeningSocket, access: Access | None = None
    ) -> None:
        """Nothing is accepted before `serve`.

        Args:
            service: loaded, or to be loaded.
            listening: the address; its owner closes it.
            access: who may use it; None is as for `create_app`.
        """
        self._service, self._listening, self._access = service, listening, access
        self._stopping = asyncio.Event()
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def stop(self) -> None:
        """Begin the end; on the event loop."""
        self._stopping.set()

    async def serve(self, ready: Callable[[], None]) -> None:
        """Accept connections, load the model if it is not there yet, serve until `stop`, then drain.

        Args:
            ready: called once requests are answered.

        Raises:
            BindError: another process took the address in the meantime.
            MachError: the model cannot be loaded.
        """
        app = create_app(self._service, self._access)
        context = WorkerContext(None)
        accept = self._acceptor(ASGIWrapper(app), context, app.state.repeated)
        listen = asyncio.start_unix_server if self._listening.is_unix else asyncio.start_server
        try:
            listening = await listen(accept, sock=self._listening.socket, backlog=BACKLOG)
        except OSError as error:
            raise bind_error(self._listening.where, error) from error
        try:
            if not self._service.loaded:
                await self._service.load()
            ready()
            await self._stopping.wait()
            await self._drain(app.state.gate)
        finally:
            listening.close()
            await context.terminated.set()  # idle connections close
            await self._close_connections()
            app.state.request_log.flush()

    def _acceptor(
        self, app: ASGIWrapper, context: WorkerContext, repeated: RepeatedReports
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        config, loop = _hypercorn_config(), asyncio.get_running_loop()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._connections[task] = writer
            try:
                await Connection(app, loop, config, context, repeated, reader, writer)
            finally:
                del self._connections[task]

        return accept

    async def _close_connections(self) -> None:
        """Let connections end, and cut those whose clients do not read."""
        seconds = self._service.limits.shutdown_seconds
        for cut in (False, True):
            for writer in self._connections.values():
                if cut:
                    writer.transport.abort()
            if self._connections:
                await asyncio.wait(tuple(self._connections), timeout=seconds)

    async def _drain(self, gate: RequestGate) -> None:
        limits = self._service.limits
        self._service.draining = True
        if not await _none_open(gate, limits.drain_seconds):
            self._service.abort()
            await _none_open(gate, limits.shutdown_seconds)


async def _none_open(gate: RequestGate, seconds: float) -> bool:
    """Wait until no request is open, at most `seconds`; whether that came about."""
    deadline = asyncio.get_running_loop().time() + seconds
    while gate.open:
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True


def _hypercorn_config() -> Config:
    config = Config()
    config.keep_alive_timeout = KEEP_ALIVE_SECONDS
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = logging.getLogger("mach.server.http")
    return config
