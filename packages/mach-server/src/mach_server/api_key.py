"""Owns the server's one API key: where it comes from, what it may look like, who must show it."""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Iterable, Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from mach_server.errors import SettingError, UnauthorizedError
from mach_server.limits import Limits
from mach_server.refusal import refuse

VARIABLE = "MACH_API_KEY"

OPEN_PATHS = frozenset({"/", "/health"})
"""What everybody may ask for: the empty status page, which asks for the key itself, and whether we live."""

_KEY = re.compile(r"[!-~]{1,512}")


def checked_key(key: str) -> str:
    """A key that fits into a header.

    Raises:
        ValueError: it is empty, too long, or holds anything but visible ASCII; the message does not tell it.
    """
    if not _KEY.fullmatch(key):
        raise ValueError("an API key is 1 to 512 visible ASCII characters")
    return key


def key_from_environment(environment: Mapping[str, str] = os.environ) -> str | None:
    """The key in `MACH_API_KEY`, or None.

    Raises:
        SettingError: it cannot be one; set but empty is an error too, because it would leave the server open.
    """
    key = environment.get(VARIABLE)
    if key is None:
        return None
    try:
        return checked_key(key)
    except ValueError as error:
        raise SettingError(f"{VARIABLE}: {error}; unset it to accept any key") from None


class ApiKeyGuard:
    """Lets through only requests that show the key."""

    def __init__(self, key: str, limits: Limits) -> None:
        """Args: key: as `checked_key` accepts it."""
        self._key, self._limits = key.encode(), limits

    def around(self, app: ASGIApp) -> ASGIApp:
        """`app` behind this guard."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._shown(scope["headers"]):
                await app(scope, receive, send)
                return
            error = UnauthorizedError(
                "a valid API key is needed, as `Authorization: Bearer KEY` or `x-api-key: KEY`",
                code="invalid_api_key",
            )
            await refuse(error, self._limits, scope, receive, send)

        return guarded

    def _shown(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        shown = False
        for name, value in headers:
            if name == b"x-api-key":
                shown |= hmac.compare_digest(value, self._key)
            elif name == b"authorization" and value[:7].lower() == b"bearer ":
                shown |= hmac.compare_digest(value[7:].strip(), self._key)
        return shown
