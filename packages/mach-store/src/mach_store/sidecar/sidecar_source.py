"""Owns an opened sidecar: its descriptors, and where each record lies in them."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Sequence

from mach.io.sidecar_layout import RecordSchema, SidecarLayout, SidecarLayoutError, check_files, read_layout
from mach_store.expert_source import Location
from mach_store.file_marks import FileMarks


class SidecarSource:
    """The experts of an `expert_sidecar/` directory, one contiguous record each.

    Attributes:
        verifies: whether checksums are handed out.
    """

    def __init__(self, directory: str, *, direct: bool = False, verify: bool = True) -> None:
        """Open every declared layer file.

        Args:
            directory: holds `layout.json` and the layer files.
            direct: bypass the page cache.
            verify: hand out checksums, so that every read is verified.

        Raises:
            SidecarLayoutError: the layout is invalid or a file's size contradicts it.
        """
        self.directory = directory
        self.layout: SidecarLayout = read_layout(directory)
        check_files(self.layout, directory)
        counts = {layer.num_experts for layer in self.layout.layers}
        if len(counts) != 1:
            raise SidecarLayoutError(
                f"{directory}: layers hold different numbers of experts ({sorted(counts)}), which this "
                "release does not load",
                path=directory,
                field="layers",
            )
        self.num_experts = counts.pop()
        self.schemas: dict[int, RecordSchema] = {layer.index: layer.schema for layer in self.layout.layers}
        self._layers = {layer.index: layer for layer in self.layout.layers}
        self.verifies = verify
        self._fds: dict[int, int] = {}
        self._marks = FileMarks()
        try:
            self._open_files(direct)
        except OSError as error:
            self.close()
            hint = ": this file system has no direct reads, unset LME_DIRECT_IO" if direct else ""
            raise SidecarLayoutError(
                f"{error.filename}: cannot be opened ({error.strerror}){hint}", path=str(error.filename)
            ) from error

    def _open_files(self, direct: bool) -> None:
        for layer in self.layout.layers:
            path = os.path.join(self.directory, layer.file)
            self._fds[layer.index] = _open(path, direct)
            self._marks.remember(self._fds[layer.index], path)

    def locate(self, layer: int, experts: Sequence[int]) -> Location:
        """See `ExpertSource`."""
        record, fd = self._layers[layer], self._fds[layer]
        return Location(
            fds=[fd] * len(experts),
            offsets=[expert * record.stride for expert in experts],
            crcs=[record.checksums[expert] for expert in experts] if self.verifies else None,
        )

    def path_of(self, layer: int, segment: int, expert: int) -> str:
        """See `ExpertSource`."""
        return os.path.join(self.directory, self._layers[layer].file)

    def changed(self, fds: Sequence[int]) -> str | None:
        """See `ExpertSource`."""
        return self._marks.changed(fds)

    def direct_twin(self) -> SidecarSource:
        """The same sidecar, read past the page cache.

        Raises:
            OSError: the file system has no direct reads.
        """
        try:
            return SidecarSource(self.directory, direct=True, verify=self.verifies)
        except SidecarLayoutError as error:
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from error
            raise

    def close(self) -> None:
        """See `ExpertSource`."""
        while self._fds:
            os.close(self._fds.popitem()[1])


def _open(path: str, direct: bool) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC
    if direct and sys.platform == "linux":
        flags |= os.O_DIRECT
    fd = os.open(path, flags)
    if direct and sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_NOCACHE, 1)
    return fd
