"""Owns mach-core's environment variables: the one place where this package reads them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

DEFAULT_HUB = "https://huggingface.co"
DEFAULT_CACHE_ROOT = "~/.cache/mach"


def expert_kernels_wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the engine's own variables, which mach-store checks, leave its experts to native kernels."""
    off = (environment.get("LME_CPU_KERNELS"), environment.get("LME_USE_GATHER_DISPATCH"))
    return "0" not in off


class CoreSettings(NamedTuple):
    """Where things are looked for outside the arguments of a command.

    Attributes:
        hub_endpoint: `HF_ENDPOINT`, base URL of the Hugging Face hub.
        hub_token: `HF_TOKEN`, or None.
        catalog_url: `LME_CATALOG_URL`, a base URL or the whole URL of the catalogue, or None.
        catalog_token: `LME_CATALOG_TOKEN`, or None.
        models_directories: `LME_MODELS_DIR`, further directories to scan, separated as in PATH.
        cache_root: `~/.cache/mach`, unless a command is told otherwise.
    """

    hub_endpoint: str = DEFAULT_HUB
    hub_token: str | None = None
    catalog_url: str | None = None
    catalog_token: str | None = None
    models_directories: tuple[str, ...] = ()
    cache_root: str = ""

    def __repr__(self) -> str:
        """Without the tokens."""
        return f"CoreSettings(hub_endpoint={self.hub_endpoint!r}, cache_root={self.cache_root!r}, …)"

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] = os.environ, *, cache_root: str | None = None
    ) -> CoreSettings:
        """The settings that `environment` asks for; empty variables count as unset."""
        return cls(
            hub_endpoint=(environment.get("HF_ENDPOINT") or DEFAULT_HUB).rstrip("/"),
            hub_token=environment.get("HF_TOKEN") or None,
            catalog_url=environment.get("LME_CATALOG_URL") or None,
            catalog_token=environment.get("LME_CATALOG_TOKEN") or None,
            models_directories=tuple(filter(None, environment.get("LME_MODELS_DIR", "").split(os.pathsep))),
            cache_root=os.path.expanduser(cache_root or DEFAULT_CACHE_ROOT),
        )
