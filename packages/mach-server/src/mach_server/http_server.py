"""Owns the socket, its connections, and the orderly end: refuse, let finish, cancel, close."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config

from mach_server.app import RequestGate, create_app
from mach_server.connection import Connection
from mach_server.errors import BindError
from mach_server.inference_service import InferenceService
from mach_server.limits import Limits

KEEP_ALIVE_SECONDS = 75.0
"""Longer than clients keep idle connections, so that it is they who close them and no request is lost."""

BACKLOG = 128
"""Connections that the system accepts before this process does."""

POLL_SECONDS = 0.02


class HttpServer:
    """One service behind one socket, from bind to drain.

    Attributes:
        url: `http://host:port`, with the real port.
    """

    def __init__(self, service: InferenceService, host: str, port: int) -> None:
        """Take the address; nothing is accepted before `serve`.

        Raises:
            BindError: the address is in use, or is none of this machine's.
        """
        self._service = service
        self._socket = bound_socket(host, port, service.limits)
        self._address = f"{host}:{port}"
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}"
        self._stopping = asyncio.Event()
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def close(self) -> None:
        """Give up the address."""
        self._socket.close()

    def stop(self) -> None:
        """Begin the end; on the event loop."""
        self._stopping.set()

    async def serve(self, ready: Callable[[], None]) -> None:
        """Serve until `stop`, then drain.

        Args:
            ready: called once connections are accepted.

        Raises:
            BindError: another process took the address in the meantime.
        """
        app = create_app(self._service)
        context = WorkerContext(None)
        accept = self._acceptor(ASGIWrapper(app), context)
        try:
            listening = await asyncio.start_server(accept, sock=self._socket, backlog=BACKLOG)
        except OSError as error:
            raise _bind_error(self._address, error) from error
        ready()
        await self._stopping.wait()
        await self._drain(app.state.gate)
        listening.close()
        await context.terminated.set()  # idle connections close
        await self._close_connections()

    def _acceptor(
        self, app: ASGIWrapper, context: WorkerContext
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        config, loop = _hypercorn_config(), asyncio.get_running_loop()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._connections[task] = writer
            try:
                await Connection(app, loop, config, context, {}, reader, writer)
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


def bound_socket(host: str, port: int, limits: Limits) -> socket.socket:
    """A TCP socket bound to the address; IPv4 if the name has such an address.

    Raises:
        BindError: the system refuses.
    """
    where = f"{host}:{port}"
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise BindError(f"cannot listen on {where}: {error}") from error
    family, _, _, _, address = min(infos, key=lambda info: info[0] != socket.AF_INET)
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit both of these.
        if limits.send_buffer_bytes is not None:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.send_buffer_bytes)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = int(limits.stuck_client_seconds * 1000)
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _bind_error(where, error) from error
    return bound


def _bind_error(where: str, error: OSError) -> BindError:
    hint = "; choose another --port, or 0 for any free one" if error.errno == errno.EADDRINUSE else ""
    return BindError(f"cannot listen on {where}: {error.strerror or error}{hint}")


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
