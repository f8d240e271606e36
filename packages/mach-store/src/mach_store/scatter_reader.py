"""Owns the choice between the native reader and its Python twin, and how their failures are reported."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Protocol

import mlx.core as mx

from mach_store import python_reader
from mach_store.counters import LayerCounters
from mach_store.errors import ExpertReadError, NativeReaderMissingError, SidecarCorruptionError
from mach_store.expert_source import ExpertSource
from mach_store.settings import StoreSettings

NATIVE_MODULE = "lme_mlx_pread_ext"


class ScatterPlan(Protocol):
    """Destinations of one kind of record; see `native/README.md`."""

    def read(
        self,
        slots: Sequence[int],
        fds: Sequence[int],
        offsets: Sequence[int],
        crcs: Sequence[int] | None = None,
        *,
        threads: int = 4,
        direct: bool = False,
    ) -> int:
        """Read one record per slot; returns the bytes read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScatterReader:
    """The reader in use.

    Attributes:
        native: whether it is `lme_mlx_pread_ext`.
        reason: why the native reader is not in use; empty when it is.
    """

    native: bool
    reason: str
    threads: int
    direct: bool
    _plan: Callable[..., Any]
    _read_error: type[Exception]
    _checksum_error: type[Exception]

    def with_direct(self, direct: bool) -> ScatterReader:
        """The same reader for descriptors that were opened so."""
        return self if direct == self.direct else replace(self, direct=direct)

    def plan(self, arrays: Sequence[mx.array], nbytes: Sequence[int], widen: Sequence[bool]) -> ScatterPlan:
        """A plan that reads records into the slots of `arrays` (evaluated, row-contiguous)."""
        plan: ScatterPlan = self._plan(arrays, nbytes, widen)
        return plan

    def read(
        self,
        plan: ScatterPlan,
        source: ExpertSource,
        layer: int,
        experts: Sequence[int],
        slots: Sequence[int],
        counters: LayerCounters,
    ) -> None:
        """Read `experts` of `layer` into `slots`, counting bytes and seconds.

        Raises:
            SidecarCorruptionError: a checksum differs.
            ExpertReadError: the system refused a read, the file ended, or it has no checksums and was written
                to since it was opened.
        """
        where = source.locate(layer, experts)
        began = time.perf_counter()
        try:
            counters.bytes_read += plan.read(
                slots, where.fds, where.offsets, where.crcs, threads=self.threads, direct=self.direct
            )
        except self._checksum_error as error:
            raise self.corruption(source, layer, experts[error.job], error) from error  # type: ignore[attr-defined]
        except self._read_error as error:
            raise self.read_failure(source, layer, experts[error.job], error) from error  # type: ignore[attr-defined]
        finally:
            seconds = time.perf_counter() - began
            counters.read_seconds += seconds
            counters.wait_seconds += seconds
        changed = source.changed(where.fds) if where.crcs is None else None
        if changed is not None:
            raise self.file_changed(changed, layer, experts[0])

    @staticmethod
    def file_changed(path: str, layer: int, expert: int) -> ExpertReadError:
        """What is raised for a file without checksums that was written to."""
        return ExpertReadError(
            f"{path}: layer {layer}, expert {expert}: cannot be read: the file was written to "
            "after it was opened, and has no checksums; load the checkpoint again",
            path=path,
            layer=layer,
            expert=expert,
        )

    @staticmethod
    def corruption(source: ExpertSource, layer: int, expert: int, cause: Exception) -> SidecarCorruptionError:
        """What is raised for a checksum that differs, because of the reader's own error."""
        path = source.path_of(layer, 0, expert)
        error = SidecarCorruptionError(
            f"{path}: layer {layer}, expert {expert}: the bytes on disk do not match their checksum; "
            "export the sidecar again, and check the disk",
            path=path,
            layer=layer,
            expert=expert,
        )
        error.__cause__ = cause
        return error

    @staticmethod
    def read_failure(source: ExpertSource, layer: int, expert: int, cause: Any) -> ExpertReadError:
        """What is raised for a read that the system refused, because of the reader's own error."""
        path = source.path_of(layer, cause.segment, expert)
        error = ExpertReadError(
            f"{path}: layer {layer}, expert {expert}: cannot be read: {cause}",
            path=path,
            layer=layer,
            expert=expert,
        )
        error.__cause__ = cause
        return error


def open_reader(settings: StoreSettings) -> ScatterReader:
    """The native reader, or the Python one where `settings.fallback_policy` allows it.

    Raises:
        NativeReaderMissingError: the native module cannot be imported under `fail-fast`.
    """
    try:
        native = import_module(NATIVE_MODULE)
    except ImportError as error:
        if settings.fallback_policy == "fail-fast":
            raise NativeReaderMissingError(
                f"{NATIVE_MODULE} cannot be imported ({error}); install mach-native, or build it with "
                "tools/build_mlx_pread_ext.py, or set LME_FALLBACK_POLICY=diagnostic-python to read slowly"
            ) from error
        if settings.direct_io:
            raise NativeReaderMissingError(
                f"{NATIVE_MODULE} cannot be imported ({error}): LME_DIRECT_IO=1 cannot be honoured without it"
            ) from error
        return _python_reader(f"{NATIVE_MODULE}: {error}")
    return ScatterReader(
        native=True,
        reason="",
        threads=settings.read_threads,
        direct=settings.direct_io is True,
        _plan=native.ScatterPlan,
        _read_error=native.ReadError,
        _checksum_error=native.ChecksumError,
    )


def python_twin() -> ScatterReader:
    """The Python reader whatever is installed: for comparing the native one with it."""
    return _python_reader("asked for")


def _python_reader(reason: str) -> ScatterReader:
    return ScatterReader(
        native=False,
        reason=reason,
        threads=1,
        direct=False,
        _plan=python_reader.PythonScatterPlan,
        _read_error=python_reader.ReadError,
        _checksum_error=python_reader.ChecksumError,
    )
