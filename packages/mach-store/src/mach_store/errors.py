"""Owns mach-store's exception tree.

MachError (mach.errors)
└── StoreError
    ├── SidecarCorruptionError   bytes on disk contradict their checksum or end early
    ├── SidecarExportError       a sidecar cannot be made from this checkpoint
    ├── PruneError               a pruned checkpoint cannot be made
    │   └── PlanError            a keep list is malformed, or does not fit the checkpoint
    ├── ExpertReadError          the operating system refused a read
    ├── MemoryBudgetError        a budget is too small, or does not fit into the machine
    ├── BankResizeError          a bank's memory cannot be given back while it is in use
    ├── NativeReaderMissingError the native extension cannot be imported and no fallback is allowed
    ├── RoutesUnseenError        nobody sees which experts this store's tokens are routed to
    ├── TraceWriteError          a routing trace cannot be written
    ├── TraceFormatError         a file is no routing trace, or a damaged one
    ├── BankSizeError            a trace cannot be replayed through a bank of this size
    ├── SettingError             an environment variable holds a bad value
    └── DispatchCancelledError   the caller withdrew the request while a layer was being dispatched
"""

from __future__ import annotations

from mach.errors import MachError


class StoreError(MachError):
    """Base of every error that mach-store raises by itself."""


class SidecarCorruptionError(StoreError):
    """An expert's bytes are not those that were written; nothing computed from them is returned.

    Attributes:
        path: the file that holds the bytes.
        layer: model layer index.
        expert: expert index within the layer.
    """

    def __init__(self, message: str, *, path: str, layer: int, expert: int) -> None:
        super().__init__(message)
        self.path, self.layer, self.expert = path, layer, expert


class SidecarExportError(StoreError):
    """A sidecar cannot be made from this checkpoint; the message names the tensor or file."""


class PruneError(StoreError):
    """A pruned checkpoint cannot be made from this source, or not there; nothing is under the final name."""


class PlanError(PruneError):
    """A plan of experts to keep is malformed, or does not fit the checkpoint.

    Attributes:
        path: the plan's file.
        line: the line at fault, from 1; 0 where no single line is.
    """

    def __init__(self, message: str, *, path: str, line: int = 0) -> None:
        super().__init__(message)
        self.path, self.line = path, line


class ExpertReadError(StoreError):
    """Reading an expert failed in the operating system.

    Attributes:
        path: the file that was read.
        layer: model layer index.
        expert: expert index within the layer.
    """

    def __init__(self, message: str, *, path: str, layer: int, expert: int) -> None:
        super().__init__(message)
        self.path, self.layer, self.expert = path, layer, expert


class MemoryBudgetError(StoreError):
    """A memory budget cannot be honoured.

    Attributes:
        needed: bytes the request needs.
        available: bytes that the budget or the machine has.
    """

    def __init__(self, message: str, *, needed: int, available: int) -> None:
        super().__init__(message)
        self.needed, self.available = needed, available


class BankResizeError(StoreError):
    """A bank cannot give memory back while it is in use: not on this system, or the system refused."""


class NativeReaderMissingError(StoreError):
    """`lme_mlx_pread_ext` cannot be imported and the policy is `fail-fast`."""


class RoutesUnseenError(StoreError):
    """Routes were to be observed where nobody sees them; the message says what to load instead."""


class TraceWriteError(StoreError):
    """A routing trace cannot be written, or no further; what was written before is readable.

    Attributes:
        path: the file.
    """

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path


class TraceFormatError(StoreError):
    """A file is no routing trace, or not as it was written.

    Attributes:
        path: the file.
        block: number of the block at fault; 0 is the header, and a file that is no trace at all.
    """

    def __init__(self, message: str, *, path: str, block: int = 0) -> None:
        super().__init__(message)
        self.path, self.block = path, block


class BankSizeError(StoreError):
    """A trace cannot be replayed through a bank of this size; the message says which it can."""


class SettingError(StoreError):
    """An environment variable holds a value that is not allowed.

    Attributes:
        variable: its name.
    """

    def __init__(self, variable: str, value: str, allowed: str) -> None:
        super().__init__(f"{variable}={value!r}: must be {allowed}")
        self.variable = variable


class DispatchCancelledError(StoreError):
    """The running request was cancelled between two layers; the bank is consistent."""
