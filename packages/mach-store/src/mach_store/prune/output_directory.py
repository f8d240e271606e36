"""Owns the directory that mach-prune makes: built beside its final name, resumable, in place in one step.

Everything is written into `<output>.partial/`. `mach_prune.json` there says what it will be (a fingerprint of
source, plan and settings) and which files are whole; it stays in the finished checkpoint, as the sign that
the directory is mach-prune's own and may be replaced by it.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from types import TracebackType
from typing import Any

from mach.io.sidecar_layout import DIRECTORY, SidecarLayoutError, check_files, read_layout
from mach_store.errors import PruneError
from mach_store.lock_file import lock_file, unlock_file
from mach_store.safetensors_writer import WrittenFile, read_range
from mach_store.sidecar.atomic_directory import fsync_directory, install_directory
from mach_store.sidecar.verification import verify_sidecar

MARKER = "mach_prune.json"
FORMAT = "mach-prune-v1"
_MAX_MARKER_BYTES = 64 << 20


class OutputDirectory:
    """One output in the making; use as a context manager, write what is not `done`, then `finish`."""

    def __init__(self, output: str, fingerprint: str, *, overwrite: bool) -> None:
        """Lock the output and look at what is there; nothing is written yet but the lock.

        Args:
            output: the directory to make.
            fingerprint: identifies source, plan and settings; only work with the same one is resumed.
            overwrite: replace a checkpoint that an earlier mach-prune made.

        Raises:
            PruneError: the output exists and is not to be replaced, or the disk refuses.
            SidecarExportError: another mach-prune is writing here.
        """
        self.output = os.path.abspath(output)
        self.partial = self.output + ".partial"
        self._lock_path = self.partial + ".lock"
        self._files: dict[str, WrittenFile] = {}
        self._fingerprint, self._overwrite = fingerprint, overwrite
        try:
            os.makedirs(os.path.dirname(self.output), exist_ok=True)
            self._lock = lock_file(self._lock_path)
        except OSError as error:
            raise PruneError(f"{self.output}: cannot be written: {error.strerror}") from error
        try:
            self.complete = self._complete()
            if not self.complete:
                self._require_replaceable()
            if os.path.lexists(self.partial):
                self._require_own(self.partial)
        except BaseException:
            unlock_file(self._lock_path, self._lock)
            raise

    def __enter__(self) -> OutputDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        unlock_file(self._lock_path, self._lock)

    def begin(self) -> None:
        """Make the partial directory, or take up the one of an interrupted run, its files read once.

        Raises:
            OSError: the disk refuses.
        """
        marker = _read_marker(self.partial)
        if marker is None or marker["fingerprint"] != self._fingerprint:
            self.discard()
            os.mkdir(self.partial)
        else:
            for name, file in marker["files"].items():
                if _crc32(os.path.join(self.partial, name)) == file:
                    self._files[name] = file
            sidecar = os.path.join(self.partial, DIRECTORY)
            if os.path.isdir(sidecar) and not _intact(sidecar):
                shutil.rmtree(sidecar)
        self._write_marker(complete=False)

    def discard(self) -> None:
        """Delete what an interrupted run left; the marker last, so that after a kill it is known as ours."""
        if not os.path.lexists(self.partial):
            return
        for entry in os.scandir(self.partial):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif entry.name != MARKER:
                os.unlink(entry.path)
        if os.path.lexists(os.path.join(self.partial, MARKER)):
            os.unlink(os.path.join(self.partial, MARKER))
        os.rmdir(self.partial)

    @property
    def sidecar_done(self) -> bool:
        """Whether the whole sidecar is there, from an interrupted run."""
        return os.path.isdir(os.path.join(self.partial, DIRECTORY))

    def done(self, name: str) -> bool:
        """Whether the file `name` need not be written again."""
        return name in self._files

    def path(self, name: str) -> str:
        """Where to write the file `name` (atomically)."""
        return os.path.join(self.partial, name)

    def record(self, name: str, file: WrittenFile) -> None:
        """Note that the file `name` is whole and durable."""
        self._files[name] = file
        self._write_marker(complete=False)

    def write(self, name: str, data: bytes) -> None:
        """Write a small file and `record` it."""
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _write_atomically(path, data)
        self.record(name, WrittenFile(nbytes=len(data), crc32=zlib.crc32(data)))

    def finish(self) -> None:
        """Mark the directory as complete and put it in place.

        Raises:
            PruneError: something that is not to be replaced has appeared under the final name.
            OSError: the disk refuses.
        """
        keep = {MARKER, DIRECTORY, *(name.split(os.sep)[0] for name in self._files)}
        for entry in os.scandir(self.partial):
            if entry.name not in keep:  # an interrupted write's
                shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
        self._write_marker(complete=True)
        for directory in {os.path.dirname(self.path(name)) for name in self._files}:
            fsync_directory(directory)
        self._require_replaceable()
        install_directory(self.partial, self.output, discard=lambda _: self.discard())

    def _complete(self) -> bool:
        """Whether the output is there already, made of the same source, plan and settings."""
        marker = None if self._overwrite else _read_marker(self.output)
        if marker is None or not marker["complete"] or marker["fingerprint"] != self._fingerprint:
            return False
        try:
            sidecar = os.path.join(self.output, DIRECTORY)
            check_files(read_layout(sidecar), sidecar)
            return all(
                os.stat(os.path.join(self.output, name)).st_size == file.nbytes
                for name, file in marker["files"].items()
            )
        except (OSError, SidecarLayoutError):
            return False

    def _require_replaceable(self) -> None:
        if not os.path.lexists(self.output):
            return
        self._require_own(self.output)
        if not os.listdir(self.output) or self._overwrite:
            return
        raise PruneError(
            f"{self.output}: is there already, made of another source, plan or settings, or changed since: "
            "give --overwrite to replace it, or another --output"
        )

    def _require_own(self, directory: str) -> None:
        """Refuse to replace or delete what no mach-prune has made."""
        if os.path.islink(directory) or not os.path.isdir(directory):
            raise PruneError(f"{directory}: is not a directory: give another --output")
        names = set(os.listdir(directory)) - {MARKER, MARKER + ".tmp"}
        marker = _read_marker(directory)
        if names and marker is None:
            raise PruneError(
                f"{directory}: holds {min(names)} and no {MARKER}, so mach-prune did not make it and "
                "does not replace it: give another --output"
            )
        if marker is not None and marker["complete"] and directory == self.output:
            foreign = names - {DIRECTORY, *(name.split(os.sep)[0] for name in marker["files"])}
            if foreign:
                raise PruneError(
                    f"{directory}: holds {min(foreign)}, which mach-prune did not write, so it is not "
                    "replaced: move that file away, or give another --output"
                )

    def _write_marker(self, *, complete: bool) -> None:
        document = {
            "format": FORMAT,
            "complete": complete,
            "fingerprint": self._fingerprint,
            "files": {
                name: {"nbytes": file.nbytes, "crc32": file.crc32}
                for name, file in sorted(self._files.items())
            },
        }
        _write_atomically(self.path(MARKER), json.dumps(document, indent=1).encode() + b"\n")


def _write_atomically(path: str, data: bytes) -> None:
    with open(path + ".tmp", "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    os.rename(path + ".tmp", path)


def _read_marker(directory: str) -> dict[str, Any] | None:
    """The marker in `directory`, its files as WrittenFile; None if there is none that this version wrote."""
    try:
        with open(os.path.join(directory, MARKER), "rb") as handle:
            document = json.loads(handle.read(_MAX_MARKER_BYTES))
        if document["format"] != FORMAT or type(document["complete"]) is not bool:
            return None
        document["files"] = {
            os.path.normpath(name): WrittenFile(nbytes=int(file["nbytes"]), crc32=int(file["crc32"]))
            for name, file in document["files"].items()
        }
        document["fingerprint"] = str(document["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    inside = all(not os.path.isabs(name) and not name.startswith("..") for name in document["files"])
    return dict(document) if inside else None


def _crc32(path: str) -> WrittenFile | None:
    try:
        size, crc = os.stat(path).st_size, 0
        for chunk in read_range(path, 0, size):
            crc = zlib.crc32(chunk, crc)
    except OSError:
        return None
    return WrittenFile(nbytes=size, crc32=crc)


def _intact(sidecar: str) -> bool:
    try:
        check_files(read_layout(sidecar), sidecar)
        return not verify_sidecar(sidecar)
    except SidecarLayoutError:
        return False
