"""Owns which web pages may use the server through the browsers of those who can reach it.

A page of any site can send requests to an address that its visitor's browser reaches, loopback included. It
cannot read the answers without CORS, but the engine would work for it. Browsers name the page's origin in
such requests: a foreign one is refused unless it is allowed. A page can also have its own site's name lead to
loopback (DNS rebinding); the browser then takes us for that site, and names it in Host: without a key, a
server on loopback answers only to names that cannot be rebound.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from mach_server.errors import ApiError, ForbiddenError
from mach_server.limits import Limits
from mach_server.refusal import refuse

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_PLACE = re.compile(r"(?P<name>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{0,5})?")
_HOST = re.compile(r"[a-z0-9._-]+")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_SHOWN = 100


def checked_origin(text: str) -> str:
    """An origin as browsers send it, in lower case, or `*` for all of them.

    Raises:
        ValueError: it is none.
    """
    origin = text.lower()
    if origin != "*" and not _ORIGIN.fullmatch(origin):
        raise ValueError(f"{text!r} is no origin: write scheme://host[:port] without a path, or *")
    return origin


def checked_host(text: str) -> str:
    """A host name in lower case.

    Raises:
        ValueError: it is none.
    """
    if not _HOST.fullmatch(text.lower()):
        raise ValueError(f"{text!r} is no host name: leave out scheme, port and path")
    return text.lower()


class OriginGuard:
    """Refuses requests that a page without permission had a browser send."""

    def __init__(self, origins: Iterable[str], hosts: Iterable[str] | None, limits: Limits) -> None:
        """Guard an application.

        Args:
            origins: as `checked_origin` returns them.
            hosts: names that Host may hold besides IP addresses and localhost; None lets it hold any.
            limits: for the bodies of refused requests.
        """
        self._origins = frozenset(origins)
        self._hosts = None if hosts is None else frozenset(hosts)
        self._limits = limits

    def around(self, app: ASGIApp) -> ASGIApp:
        """`app` behind this guard."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            error = self._objection(scope["headers"]) if scope["type"] == "http" else None
            if error is None:
                await app(scope, receive, send)
            else:
                await refuse(error, self._limits, scope, receive, send)

        return guarded

    def _objection(self, headers: Iterable[tuple[bytes, bytes]]) -> ApiError | None:
        host = origin = ""
        for name, value in headers:
            if name == b"host":
                host = value.decode("latin-1").lower()
            elif name == b"origin":
                origin = value.decode("latin-1").lower()
        if self._hosts is not None and host and not self._trusted(host):
            return ForbiddenError(
                f"the Host header names {host[:_SHOWN]!r}, which is not this server: allow the name with "
                "--allowed-host, or set an API key",
                code="host_not_allowed",
            )
        if origin and not self._permitted(origin, host):
            return ForbiddenError(
                f"pages of {origin[:_SHOWN]!r} may not use this server: allow them with --cors-origin",
                code="origin_not_allowed",
            )
        return None

    def _trusted(self, host: str) -> bool:
        found = _PLACE.fullmatch(host)
        if found is None:
            return False
        name = found["name"].strip("[]")
        assert self._hosts is not None
        if name in self._hosts or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True  # no name, so nothing that could have been rebound

    def _permitted(self, origin: str, host: str) -> bool:
        if "*" in self._origins or origin in self._origins:
            return True
        scheme, _, place = origin.partition("://")
        port = _DEFAULT_PORTS.get(scheme)
        return port is not None and place.removesuffix(port) == host.removesuffix(port)
