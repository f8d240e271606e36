"""Owns the making of a sidecar directory: layer by layer, resumable, and visible only when it is whole.

Everything is written into `<output>.partial/`. After each layer `progress.json` there says, atomically, which
layers are done; an interrupted export with the same fingerprint goes on from it. The finished directory takes
the place of `<output>` in one step.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType

from mach.io.sidecar_layout import (
    LAYOUT_NAME,
    LayerFile,
    RecordSchema,
    SidecarLayout,
    SidecarLayoutError,
    check_files,
    dump_layout,
    layer_file_name,
    padded,
    parse_layout,
)
from mach_store.errors import SidecarExportError
from mach_store.lock_file import lock_file, unlock_file
from mach_store.sidecar.atomic_directory import fsync_directory, install_directory

Buffer = bytes | bytearray | memoryview
PROGRESS_NAME = "progress.json"
_BUFFER_BYTES = 64 << 10
# Some kernels take many times as long for a write of several megabytes, looking for memory in one piece.
_WRITE_BYTES = 128 << 10
_ALLOCATE_BYTES = 256 << 20
_LAYER_FILE = re.compile(r"layer_\d+\.bin")


class SidecarWriter:
    """Writes one sidecar; use as a context manager, write every layer, then `finish`."""

    def __init__(self, output: str, *, model_type: str, alignment: int, fingerprint: str) -> None:
        """Open or resume `<output>.partial`.

        Args:
            output: the directory to make.
            model_type: architecture key, stored in the layout.
            alignment: bytes that every record starts at a multiple of; a power of two.
            fingerprint: identifies source and settings; only progress with the same one is resumed.

        Raises:
            SidecarExportError: the output exists and is no sidecar, another export into it is running,
                the disk refuses, or the alignment is not a power of two.
        """
        if alignment < 1 or alignment & (alignment - 1):
            raise SidecarExportError(f"alignment {alignment} is not a power of two")
        self.output = os.path.abspath(output)
        _require_replaceable(self.output)
        self.partial = self.output + ".partial"
        self._model_type, self._alignment, self._fingerprint = model_type, alignment, fingerprint
        # Beside the directory, which is renamed in the end, and not in it.
        self._lock_path = self.partial + ".lock"
        try:
            os.makedirs(os.path.dirname(os.path.abspath(self.output)), exist_ok=True)
            self._lock = lock_file(self._lock_path)
        except OSError as error:
            raise SidecarExportError(f"{self.output}: cannot be written: {error.strerror}") from error
        try:
            os.makedirs(self.partial, exist_ok=True)
            self._done: dict[int, LayerFile] = self._resume()
        except OSError as error:
            self._unlock()
            raise SidecarExportError(f"{self.partial}: cannot be written: {error.strerror}") from error
        self._background = ThreadPoolExecutor(1, "mach-durable")
        self._under_way: Future[None] | None = None

    def __enter__(self) -> SidecarWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What is under way is finished first: the next writer may begin as soon as the lock is free.
        self._background.shutdown()
        self._unlock()

    def _unlock(self) -> None:
        unlock_file(self._lock_path, self._lock)

    @property
    def done(self) -> frozenset[int]:
        """Layers that need not be written again; the one written last may still be on its way to the disk."""
        return frozenset(self._done)

    def write_layer(self, index: int, schema: RecordSchema, records: Iterable[Sequence[Buffer]]) -> None:
        """Write one layer file; each record is its segments' bytes in the schema's order.

        Raises:
            SidecarExportError: a segment has the wrong size, or the disk refuses (full, read-only).
        """
        name = layer_file_name(index)
        temporary = os.path.join(self.partial, name + ".tmp")
        stride = padded(schema.nbytes, self._alignment)
        padding = bytes(stride - schema.nbytes)
        checksums = []
        try:
            with open(temporary, "wb", buffering=_BUFFER_BYTES) as out:
                allocation = _Allocation(out.fileno())
                for expert, record in enumerate(records):
                    crc = 0
                    allocation.reach((expert + 1) * stride)
                    for segment, data in zip(schema.segments, record, strict=True):
                        view = memoryview(data).cast("B")
                        if view.nbytes != segment.nbytes:
                            raise SidecarExportError(
                                f"layer {index}, expert {expert}: {segment.name} has {view.nbytes} bytes, "
                                f"not {segment.nbytes}"
                            )
                        for start in range(0, segment.nbytes, _WRITE_BYTES):
                            piece = view[start : start + _WRITE_BYTES]
                            crc = zlib.crc32(piece, crc)
                            out.write(piece)
                    out.write(padding)
                    checksums.append(crc)
                out.flush()
                out.truncate()  # what was allocated and not written
        except OSError as error:
            raise self._refused(temporary, error) from error
        layer = LayerFile(
            index=index,
            file=name,
            num_experts=len(checksums),
            stride=stride,
            schema=schema,
            checksums=tuple(checksums),
        )
        self._await_durable()
        self._under_way = self._background.submit(self._make_durable, temporary, layer)

    def _make_durable(self, temporary: str, layer: LayerFile) -> None:
        """Wait until a layer is on the disk, and only then give it its name and count it as done."""
        try:
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            os.rename(temporary, os.path.join(self.partial, layer.file))
            self._done[layer.index] = layer
            self._write_atomically(
                PROGRESS_NAME,
                json.dumps({"fingerprint": self._fingerprint, "layout": json.loads(self._layout())}).encode(),
            )
        except OSError as error:
            raise self._refused(temporary, error) from error

    def _await_durable(self) -> None:
        """Wait for the layer before, whose way to the disk goes on while the next one is read and written."""
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            under_way.result()

    def _refused(self, temporary: str, error: OSError) -> SidecarExportError:
        with suppress(OSError):
            os.unlink(temporary)  # a full disk has better use for its space
        return SidecarExportError(
            f"{error.filename or temporary}: {error.strerror}; the layers done so far are kept in "
            f"{self.partial} and the next export goes on from them"
        )

    def finish(self) -> SidecarLayout:
        """Write `layout.json`, check every size, and put the directory in place.

        Raises:
            SidecarExportError: nothing was written, or the directory cannot be put in place.
        """
        self._await_durable()
        if not self._done:
            raise SidecarExportError(f"{self.output}: no layer was written")
        raw = self._layout()
        layout = parse_layout(raw, os.path.join(self.partial, LAYOUT_NAME))
        try:
            self._write_atomically(LAYOUT_NAME, raw)
            check_files(layout, self.partial)
            keep = {LAYOUT_NAME, *(layer.file for layer in layout.layers)}
            for name in os.listdir(self.partial):
                if name not in keep:
                    os.unlink(os.path.join(self.partial, name))
            fsync_directory(self.partial)
            _require_replaceable(self.output)
            install_directory(self.partial, self.output)
        except OSError as error:
            raise SidecarExportError(f"{self.output}: cannot be put in place: {error}") from error
        return layout

    def _layout(self) -> bytes:
        layers = tuple(self._done[index] for index in sorted(self._done))
        return dump_layout(
            SidecarLayout(model_type=self._model_type, alignment=self._alignment, layers=layers)
        )

    def _write_atomically(self, name: str, data: bytes) -> None:
        path = os.path.join(self.partial, name)
        with open(path + ".tmp", "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.rename(path + ".tmp", path)

    def _resume(self) -> dict[int, LayerFile]:
        """The layers of an earlier, interrupted export that are whole and belong to the same source."""
        path = os.path.join(self.partial, PROGRESS_NAME)
        try:
            with open(path, "rb") as handle:
                progress = json.loads(handle.read())
            if progress["fingerprint"] != self._fingerprint:
                return {}
            layout = parse_layout(json.dumps(progress["layout"]).encode(), path)
        except (OSError, ValueError, KeyError, TypeError, SidecarLayoutError):
            return {}
        if layout.alignment != self._alignment:
            return {}
        return {layer.index: layer for layer in layout.layers if self._intact(layer)}

    def _intact(self, layer: LayerFile) -> bool:
        path = os.path.join(self.partial, layer.file)
        try:
            if os.stat(path).st_size != layer.file_bytes:
                return False
            with open(path, "rb") as handle:
                for expected in layer.checksums:
                    record = handle.read(layer.stride)
                    if zlib.crc32(memoryview(record)[: layer.schema.nbytes]) != expected:
                        return False
        except OSError:
            return False
        return True


class _Allocation:
    """Asks for a growing file's disk space in large pieces, which makes writing it much faster."""

    def __init__(self, fd: int) -> None:
        self._fd, self._end = fd, 0
        self._able = hasattr(os, "posix_fallocate")

    def reach(self, end: int) -> None:
        """Have space up to at least `end`, if the file system can."""
        if not self._able or end <= self._end:
            return
        # As much again as there is: a small file does not take much more than it needs, even for a moment.
        size = max(end - self._end, min(self._end, _ALLOCATE_BYTES))
        try:
            os.posix_fallocate(self._fd, self._end, size)
        except OSError:
            # It cannot, or has less than that. Writing goes on, and tells what is wrong where it fails.
            self._able = False
        self._end += size


def _require_replaceable(output: str) -> None:
    """Refuse to replace anything but an old sidecar or an empty directory, since that is deleted."""
    if not os.path.lexists(output):
        return
    if os.path.islink(output) or not os.path.isdir(output):
        raise SidecarExportError(f"{output}: is not a directory: name a new one, or an old sidecar")
    for name in sorted(os.listdir(output)):
        if name != LAYOUT_NAME and not _LAYER_FILE.fullmatch(name):
            raise SidecarExportError(
                f"{output}: holds {name}, so it is no expert sidecar and is not replaced: give a new "
                "directory, usually CHECKPOINT/expert_sidecar"
            )
