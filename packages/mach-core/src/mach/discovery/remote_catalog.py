"""Owns the remote catalogue: its URL, the request, and the lenient reading of its answer.

The form of the answer is not documented anywhere public: a list of objects, at the top or under `models`,
`data`, `items` or `catalog`, is understood, each with a name and perhaps an architecture and a size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mach.discovery.model_row import REMOTE, ModelRow
from mach.io.http_get import FetchError, http_get, shown_url

CATALOG_PATH = "/v1/local-moe/catalog"
MAX_CATALOG_BYTES = 4 << 20
MAX_MODELS = 10_000
TIMEOUT = 5.0
DEADLINE = 10.0

_LISTS = ("models", "data", "items", "catalog")
_NAMES = ("name", "id", "repo_id", "slug")
_TYPES = ("model_type", "architecture", "arch")
_SIZES = ("size_bytes", "size", "bytes", "total_size")


def catalog_url(configured: str) -> str:
    """The catalogue's whole URL, from `LME_CATALOG_URL`: a base or the whole already."""
    base = configured.rstrip("/")
    return base if base.endswith(CATALOG_PATH) else base + CATALOG_PATH


def remote_models(configured: str, token: str) -> tuple[list[ModelRow], list[str]]:
    """The catalogue's models, and warnings.

    Raises:
        FetchError: the catalogue is out of reach, refuses the token, or answers nonsense.
    """
    url = catalog_url(configured)
    try:
        body = http_get(
            url, token=token, max_bytes=MAX_CATALOG_BYTES, timeout=TIMEOUT, deadline=DEADLINE
        ).body
    except FetchError as error:
        hint = " (is LME_CATALOG_TOKEN still valid?)" if error.status in (401, 403) else ""
        raise FetchError(f"{error}{hint}", status=error.status) from None
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise FetchError(f"{shown_url(url)}: the answer is not JSON") from None
    entries = _entries(document)
    if entries is None:
        raise FetchError(f"{shown_url(url)}: the answer holds no list of models")
    rows = [row for entry in entries[:MAX_MODELS] if (row := _row(entry)) is not None]
    dropped = len(entries) - len(rows)
    warnings = [f"{shown_url(url)}: {dropped} entries were not understood"] if dropped else []
    return rows, warnings


def _entries(document: Any) -> list[Any] | None:
    if isinstance(document, dict):
        document = next((document[key] for key in _LISTS if isinstance(document.get(key), list)), None)
    return document if isinstance(document, list) else None


def _row(entry: Any) -> ModelRow | None:
    if not isinstance(entry, dict):
        return None
    name = _first(entry, _NAMES, str)
    if not name or len(name) > 300:
        return None
    size = _first(entry, _SIZES, int)
    model_type = _first(entry, _TYPES, str)
    return ModelRow(
        name=name,
        source=REMOTE,
        model_type=model_type[:100] if model_type else None,
        installed=False,
        size=size if size is not None and 0 <= size < 1 << 62 else None,
        path=None,
    )


def _first(entry: Mapping[str, Any], keys: tuple[str, ...], kind: type) -> Any:
    return next((entry[key] for key in keys if type(entry.get(key)) is kind), None)
