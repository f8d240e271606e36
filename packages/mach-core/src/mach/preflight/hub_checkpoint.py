"""Owns the config-only view of a checkpoint on the Hugging Face hub: JSON files and safetensors headers.

Weights are never downloaded: of each shard only the header is read, by a ranged request. What was fetched is
kept under the cache root by commit, so that a second check needs one request.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
from urllib.parse import quote

from mach.errors import CheckpointError, HeaderError
from mach.io.arch_registry import adapter_for
from mach.io.config_file import CONFIG_NAME, MAX_CONFIG_BYTES, ConfigFields, parse_json_object
from mach.io.http_get import FetchError, Response, http_get, shown_url
from mach.io.inspection import (
    SIDECAR_DIRECTORY,
    SIDECAR_LAYOUT,
    CheckpointInspection,
    inspect_names,
    inspect_tensors,
)
from mach.io.safetensors_header import (
    INDEX_NAME,
    MAX_INDEX_BYTES,
    TensorEntry,
    header_length,
    parse_header,
    parse_index,
)
from mach.io.sidecar_layout import parse_layout
from mach.io.tokenizer_files import TOKENIZER_FILES
from mach.preflight.sidecar_probe import ABSENT, SidecarProbe, match_config
from mach.settings import CoreSettings

REPO_PATTERN = r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}"
FIRST_BYTES = 1 << 16
MAX_REMOTE_SHARDS = 512
MAX_REMOTE_LAYOUT_BYTES = 32 << 20
MAX_CACHED_BYTES = 64 << 20
CONNECTIONS = 8
TOTAL_SECONDS = 60.0


class HubCheckpoint(NamedTuple):
    """A checkpoint on the hub as far as metadata tell.

    Attributes:
        config: its config.json.
        tensors: every tensor, or None if headers were out of reach.
        names: tensor names of the index file, empty without one.
        layout_raw: expert_sidecar/layout.json, or None.
        has_tokenizer: whether it has a tokenizer that loading can use; None if that was out of reach.
        location: URL under which its files lie.
        commit: the commit that was looked at, or the revision asked for.
        notes: what could not be looked at.
    """

    config: ConfigFields
    tensors: Mapping[str, TensorEntry] | None
    names: tuple[str, ...]
    layout_raw: bytes | None
    has_tokenizer: bool | None
    location: str
    commit: str
    notes: tuple[str, ...]

    def inspection(self) -> CheckpointInspection:
        """The inspection of what was fetched; raises as `inspect_checkpoint`."""
        sidecar = None if self.layout_raw is None else f"{self.location}/{SIDECAR_DIRECTORY}"
        if self.tensors is None:
            return inspect_names(self.location, self.config, self.names, sidecar)
        return inspect_tensors(self.location, self.config, self.tensors, sidecar)

    def sidecar(self, inspection: CheckpointInspection) -> SidecarProbe:
        """The verdict on its sidecar's layout.json."""
        if self.layout_raw is None:
            return ABSENT
        path = f"{self.location}/{SIDECAR_DIRECTORY}/{SIDECAR_LAYOUT}"
        try:
            layout = parse_layout(self.layout_raw, path)
            match_config(layout, inspection, path)
        except CheckpointError as error:
            return SidecarProbe(True, False, str(error), None)
        return SidecarProbe(True, True, "layout.json is consistent; file sizes not checked", layout)


def is_repo_id(name: str) -> bool:
    """Whether `name` has the form of a hub repository id."""
    return re.fullmatch(REPO_PATTERN, name) is not None and ".." not in name


def fetch_hub_checkpoint(repo: str, revision: str, settings: CoreSettings) -> HubCheckpoint:
    """Fetch `repo`'s metadata at `revision`.

    Raises:
        FetchError: config.json is out of reach and not in the cache.
        CheckpointError: a file is not what its name says, e.g. a proxy's login page.
    """
    return _Fetcher(repo, revision, settings).checkpoint()


class _Fetcher:
    """One repository at one revision, with its cache directory."""

    def __init__(self, repo: str, revision: str, settings: CoreSettings) -> None:
        self.base = f"{settings.hub_endpoint}/{repo}/resolve/{quote(revision, safe='')}"
        self.location = shown_url(self.base)  # for messages: an endpoint may hold a password
        self.repo = repo
        self.token = settings.hub_token
        self.root = os.path.join(settings.cache_root, "preflight", repo.replace("/", "--"))
        self.reference = os.path.join(self.root, f"ref-{quote(revision, safe='')}")
        self.commit = ""
        self.notes: list[str] = []
        self.end = time.monotonic() + TOTAL_SECONDS

    def checkpoint(self) -> HubCheckpoint:
        raw = self._config()
        config = ConfigFields(
            parse_json_object(raw, f"{self.location}/{CONFIG_NAME}", MAX_CONFIG_BYTES),
            f"{self.location}/{CONFIG_NAME}",
        )
        adapter_for(config)  # before hundreds of requests for a model that cannot run
        layout = self._optional(f"{SIDECAR_DIRECTORY}/{SIDECAR_LAYOUT}", MAX_REMOTE_LAYOUT_BYTES)
        index = self._optional(INDEX_NAME, MAX_INDEX_BYTES)
        weight_map: dict[str, str] = {}
        shards = ["model.safetensors"]
        if index is not None:
            path = f"{self.location}/{INDEX_NAME}"
            weight_map = parse_index(parse_json_object(index, path, MAX_INDEX_BYTES), path)
            shards = sorted(set(weight_map.values()))
        return HubCheckpoint(
            config=config,
            tensors=self._headers(shards),
            names=tuple(weight_map),
            layout_raw=layout,
            has_tokenizer=self._has_tokenizer(),
            location=self.location,
            commit=self.commit,
            notes=tuple(self.notes),
        )

    def _config(self) -> bytes:
        try:
            answer = self._get(CONFIG_NAME, MAX_CONFIG_BYTES)
        except FetchError as error:
            cached = self._cached_config()
            if cached is not None and error.status is None:
                self.notes.append(f"offline ({error}): the last fetched copy is used")
                return cached
            raise self._explained(error) from None
        commit = answer.headers.get("x-repo-commit", "")
        if re.fullmatch(r"[0-9a-f]{40}", commit):
            self.commit = commit
            self._store(CONFIG_NAME, answer.body)
            self._write(self.reference, commit.encode())
        return answer.body

    def _cached_config(self) -> bytes | None:
        commit = (_read(self.reference) or b"").decode("ascii", "replace")
        if not re.fullmatch(r"[0-9a-f]{40}", commit):
            return None
        self.commit = commit
        return self._load(CONFIG_NAME)

    def _explained(self, error: FetchError) -> FetchError:
        hints = {
            401: "not authorised: the repository is private, gated, or does not exist; set HF_TOKEN",
            403: "forbidden: accept the repository's terms, or set HF_TOKEN",
            404: "no such repository, revision or config.json",
        }
        hint = hints.get(error.status or 0, "download the checkpoint elsewhere and name its directory")
        return FetchError(f"{error} ({hint})", status=error.status)

    def _optional(self, name: str, max_bytes: int) -> bytes | None:
        """A file that may be absent, from the cache or the hub."""
        cached = self._load(name)
        if cached is not None:
            return cached or None
        try:
            body = self._get(name, max_bytes).body
        except FetchError as error:
            if error.status not in (403, 404):
                self.notes.append(f"{name} was not looked at: {error}")
                return None
            body = b""  # kept in the cache as "absent"
        self._store(name, body)
        return body or None

    def _has_tokenizer(self) -> bool | None:
        """By the first byte of each file that would do."""
        for name in TOKENIZER_FILES:
            kept = f"{name}.first"
            first = self._load(kept)
            if first is None:
                try:
                    first = self._get(name, 1, (0, 0)).body
                except FetchError as error:
                    if error.status != 404:
                        self.notes.append(f"{name} was not looked at: {error}")
                        return None
                    first = b""
                self._store(kept, first)
            if first:
                return True
        return False

    def _headers(self, shards: list[str]) -> dict[str, TensorEntry] | None:
        """Every shard's tensors, or None with a note if the hub does not give headers."""
        if len(shards) > MAX_REMOTE_SHARDS:
            self.notes.append(f"{len(shards)} shards are too many to read headers of")
            return None
        tensors: dict[str, TensorEntry] = {}
        shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
        try:
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                headers = list(pool.map(self._header, shards))
        except FetchError as error:
            self.notes.append(f"sizes are not known, headers were not given: {error}")
            return None
        for shard, (size, raw) in zip(shards, headers, strict=True):
            tensors.update(parse_header(raw, f"{self.location}/{shard}", size, shapes))
        return tensors

    def _header(self, shard: str) -> tuple[int, bytes]:
        """A shard's size and header, by ranged requests."""
        cached = self._load(f"{shard}.header")
        if cached is not None and len(cached) > 8:
            return int.from_bytes(cached[:8], "little"), cached[8:]
        path = f"{self.location}/{shard}"
        first = self._get(shard, FIRST_BYTES, (0, FIRST_BYTES - 1))
        size = _file_size(first, path)
        length = header_length(first.body[:8], path, size)
        raw = first.body[8 : 8 + length]
        if len(raw) < length:
            rest = self._get(shard, length - len(raw), (8 + len(raw), 8 + length - 1))
            if rest.status != 206:
                raise FetchError(f"{path}: ranged requests are not answered")
            raw += rest.body
        self._store(f"{shard}.header", size.to_bytes(8, "little") + raw)
        return size, raw

    def _get(self, name: str, max_bytes: int, byte_range: tuple[int, int] | None = None) -> Response:
        left = self.end - time.monotonic()
        if left <= 0:
            raise FetchError(f"{self.location}: too slow, given up after {TOTAL_SECONDS:.0f} s")
        url = f"{self.base}/{quote(name)}"
        return http_get(
            url, token=self.token, max_bytes=max_bytes, deadline=min(left, 30.0), byte_range=byte_range
        )

    def _load(self, name: str) -> bytes | None:
        return _read(os.path.join(self.root, self.commit, name)) if self.commit else None

    def _store(self, name: str, body: bytes) -> None:
        if self.commit:
            self._write(os.path.join(self.root, self.commit, name), body)

    def _write(self, path: str, body: bytes) -> None:
        temporary = f"{path}.{os.getpid()}"
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(temporary, "wb") as handle:
                handle.write(body)
            os.replace(temporary, path)
        except OSError as error:
            note = f"nothing is cached: {error.filename}: {error.strerror}"
            if note not in self.notes:
                self.notes.append(note)


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as handle:
            return handle.read(MAX_CACHED_BYTES)
    except OSError:
        return None


def _file_size(answer: Response, path: str) -> int:
    total = answer.headers.get("content-range", "").rpartition("/")[2]
    if answer.status != 206:
        total = answer.headers.get("content-length", "")
    if not total.isascii() or not total.isdigit() or len(total) > 18:
        raise HeaderError(f"{path}: the server does not tell the file's size", path=path)
    return int(total)
