"""Owns the one way this package talks to the network: a bounded GET, whose errors never show a secret.

Bounded in size, in time per read and in time overall, because servers that answer slowly, endlessly or with a
login page are part of the world. A token is sent to the host asked for and not to where that redirects.
"""

from __future__ import annotations

import http.client
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import NamedTuple

from mach.errors import MachError


class FetchError(MachError):
    """A URL could not be fetched.

    Attributes:
        status: the HTTP status, or None if there was no answer.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Response(NamedTuple):
    """An answer: HTTP status, headers in lower case, body."""

    status: int
    headers: dict[str, str]
    body: bytes


def http_get(
    url: str,
    *,
    token: str | None = None,
    max_bytes: int,
    timeout: float = 10.0,
    deadline: float = 30.0,
    byte_range: tuple[int, int] | None = None,
) -> Response:
    """GET `url`; a bearer `token` goes to its host alone.

    Args:
        url: http or https.
        token: sent as `Authorization: Bearer`.
        max_bytes: a longer body is an error, unless a range was asked for and ignored: then it is cut.
        timeout: seconds without any byte.
        deadline: seconds for everything.
        byte_range: first and last byte wanted; a server may ignore it and answer 200.

    Raises:
        FetchError: anything but a complete 200 or 206.
    """
    shown = shown_url(url)
    found: list[Response | BaseException] = []

    def fetch() -> None:
        try:
            found.append(_fetch(url, shown, token, max_bytes, timeout, deadline, byte_range))
        except BaseException as error:
            found.append(error)

    # A socket's timeout starts anew with every byte, so dripping headers could take for ever: the thread is
    # left to itself then, and dies with the process.
    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(deadline + 0.5)
    if not found:
        raise FetchError(f"{shown}: too slow, given up")
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _fetch(
    url: str,
    shown: str,
    token: str | None,
    max_bytes: int,
    timeout: float,
    deadline: float,
    byte_range: tuple[int, int] | None,
) -> Response:
    end = time.monotonic() + deadline
    # Before urllib sees it: that would open file: and ftp: URLs too.
    if not url.startswith(("http://", "https://")):
        raise FetchError(f"{shown}: only http and https URLs are fetched")
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "mach", "Accept-Encoding": "identity"})
        if byte_range is not None:
            request.add_header("Range", f"bytes={byte_range[0]}-{byte_range[1]}")
        if token is not None:
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            whole = byte_range is None
            body = _read(answer, max_bytes + 1 if whole else max_bytes, end, shown)
            if whole and len(body) > max_bytes:
                raise FetchError(f"{shown}: the answer is larger than {max_bytes} bytes")
            headers = {name.lower(): value for name, value in answer.headers.items()}
            return Response(answer.status, headers, body)
    except urllib.error.HTTPError as error:
        error.close()
        raise FetchError(f"{shown}: HTTP {error.code}", status=error.code) from None
    except urllib.error.URLError as error:
        raise FetchError(f"{shown}: not reachable ({_reason(error.reason)})") from None
    except (OSError, http.client.HTTPException) as error:
        raise FetchError(f"{shown}: not reachable ({_reason(error)})") from None
    except ValueError:
        # The message may quote a header, and with it the token.
        raise FetchError(f"{shown}: the URL or the token holds characters that HTTP does not allow") from None


def shown_url(url: str) -> str:
    """`url` without user, password, query and fragment, for messages."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "the URL"
    return f"{parts.scheme}://{host}{port}{parts.path}"


def _read(answer: http.client.HTTPResponse, limit: int, end: float, shown: str) -> bytes:
    chunks, size = [], 0
    while size < limit:
        if time.monotonic() > end:
            raise FetchError(f"{shown}: too slow, given up")
        chunk = answer.read1(min(limit - size, 1 << 16))
        if not chunk:
            break
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    return str(getattr(error, "strerror", None) or type(error).__name__)
