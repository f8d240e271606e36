"""Owns how the status page at `/` is served: one file, which may load nothing from anywhere else.

What is on the page is status_page.html's business; it asks the API like any other client.
"""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

_INLINE = re.compile(rb"<(style|script)>(.*?)</\1>", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusPage:
    """The page and the headers that go with it.

    Attributes:
        body: the file.
        etag: of its bytes.
        policy: its Content-Security-Policy: its own style and script by their hashes, this server's API,
            and nothing else.
    """

    body: bytes
    etag: str
    policy: str

    @classmethod
    def load(cls) -> StatusPage:
        """The page as installed with this package."""
        body = files("mach_server").joinpath("status_page.html").read_bytes()
        hashes = {"style": "", "script": ""}
        for kind, text in _INLINE.findall(body):
            hashes[kind.decode()] += f" 'sha256-{b64encode(sha256(text).digest()).decode()}'"
        policy = (
            f"default-src 'none'; style-src{hashes['style']}; script-src{hashes['script']}; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return cls(body=body, etag=f'"{sha256(body).hexdigest()[:32]}"', policy=policy)

    async def answer(self, request: Request) -> Response:
        """The page, or 304 for who has it."""
        headers = {
            "content-security-policy": self.policy,
            "cache-control": "no-cache",
            "etag": self.etag,
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }
        known = [
            tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")
        ]
        if self.etag in known or known == ["*"]:
            return Response(status_code=304, headers=headers)
        return Response(self.body, media_type="text/html", headers=headers)
