"""Owns who may use the server, as its flags say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Rules of access.

    Attributes:
        api_key: what every request must show; None accepts any key and none.
        cors_origins: origins whose pages may use the server from a browser; `*` stands for all.
        trusted_hosts: names by which a server on loopback without a key may be called, besides localhost
            and IP addresses; None lets Host hold anything.
    """

    api_key: str | None = None
    cors_origins: tuple[str, ...] = ()
    trusted_hosts: frozenset[str] | None = frozenset()
