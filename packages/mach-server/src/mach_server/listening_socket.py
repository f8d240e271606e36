"""Owns the address that is listened on: TCP, or a Unix socket and its file."""

from __future__ import annotations

import errno
import os
import socket
import stat
from ipaddress import ip_address
from urllib.parse import quote

from mach_server.errors import BindError
from mach_server.limits import Limits


class ListeningSocket:
    """A bound socket; nothing is accepted before somebody listens on it.

    Attributes:
        socket: non-blocking.
        where: the address as the user named it, for errors.
        url: how clients call it, with the real port: `http://host:port` or `unix:/path`.
        loopback: whether only this machine can reach it.
        is_unix: whether it is a Unix socket.
    """

    def __init__(self, bound: socket.socket, where: str, url: str, *, file: str | None = None) -> None:
        """Args: bound: as above; file: the Unix socket's, which `close` removes."""
        self.socket, self.where, self.url = bound, where, url
        self.is_unix = file is not None
        self.loopback = self.is_unix or ip_address(bound.getsockname()[0].split("%")[0]).is_loopback
        self._file = file
        self._identity = None if file is None else _identity(file)

    def close(self) -> None:
        """Give up the address. A socket file is removed, unless somebody has put another in its place."""
        self.socket.close()
        if self._file is not None and self._identity is not None and _identity(self._file) == self._identity:
            os.unlink(self._file)
        self._file = None


def tcp_socket(host: str, port: int, limits: Limits) -> ListeningSocket:
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
    bound = _new_socket(family, limits)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # accepted connections inherit it
            milliseconds = int(limits.stuck_client_seconds * 1000)
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise bind_error(where, error) from error
    shown = f"[{host}]" if ":" in host else host
    return ListeningSocket(bound, where, f"http://{shown}:{bound.getsockname()[1]}")


def unix_socket(path: str, limits: Limits) -> ListeningSocket:
    """A Unix socket at `path`, which only this user may open. What a dead server left there is replaced.

    Raises:
        BindError: a server answers there, something else is there, or the system refuses.
    """
    where = os.path.abspath(path)
    bound = _new_socket(socket.AF_UNIX, limits)
    try:
        _remove_stale(where)
        bound.bind(where)
        os.chmod(where, 0o600)  # nobody can connect before anybody listens
    except OSError as error:
        bound.close()
        raise bind_error(where, error) from error
    except BindError:
        bound.close()
        raise
    return ListeningSocket(bound, where, f"unix:{quote(where)}", file=where)


def bind_error(where: str, error: OSError) -> BindError:
    """What to tell of an address that the system refuses."""
    taken = error.errno == errno.EADDRINUSE and not where.startswith("/")
    hint = "; choose another --port, or 0 for any free one" if taken else ""
    return BindError(f"cannot listen on {where}: {error.strerror or error}{hint}")


def _new_socket(family: int, limits: Limits) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setblocking(False)
    if limits.send_buffer_bytes is not None:  # accepted connections inherit it
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.send_buffer_bytes)
    return made


def _remove_stale(path: str) -> None:
    """Remove a socket file at which nobody listens any more."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise BindError(f"cannot listen on {path}: there is a file that is no socket; choose another --uds")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
        knock.setblocking(False)
        try:
            knock.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its backlog is full, so somebody listens
    raise BindError(f"cannot listen on {path}: another server answers there; choose another --uds")


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
