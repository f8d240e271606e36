"""Owns mach-core's exceptions; knows nothing of what raises them.

    MachError                        everything mach raises on purpose
    ├── CheckpointError              a checkpoint's files are wrong; has `path` and `field`
    │   ├── CheckpointNotFoundError  no checkpoint stands behind the name or path
    │   ├── ConfigError              config.json or another JSON file of the checkpoint
    │   │   └── UnknownArchitectureError   its model_type is not in the registry
    │   ├── HeaderError              a safetensors header
    │   └── UnsupportedLayoutError   well-formed, but not a layout that can be used here
    └── CommandError                 a command was called wrongly, or cannot do what was asked

A message names the file and the field, and says what to do next.
"""

from __future__ import annotations


class MachError(Exception):
    """Base of every exception that mach raises on purpose."""


class CheckpointError(MachError):
    """A file of a checkpoint is missing, malformed or contradicts another.

    Attributes:
        path: the file or directory at fault, or None.
        field: the JSON field, tensor or record at fault inside `path`, or None.
    """

    def __init__(self, message: str, *, path: str | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.field = field


class CheckpointNotFoundError(CheckpointError):
    """No checkpoint stands behind a name or path, or the directory lacks an essential file."""


class ConfigError(CheckpointError):
    """`config.json`, or another JSON file of a checkpoint, cannot be read or says something impossible."""


class UnknownArchitectureError(ConfigError):
    """`model_type` names an architecture that the registry does not have.

    Attributes:
        model_type: the name found in the file.
    """

    def __init__(self, message: str, *, path: str, field: str, model_type: str) -> None:
        super().__init__(message, path=path, field=field)
        self.model_type = model_type


class HeaderError(CheckpointError):
    """A safetensors header lies about lengths, shapes or offsets, or is not a header at all."""


class UnsupportedLayoutError(CheckpointError):
    """The checkpoint is well-formed, but its expert layout cannot be used for what was asked.

    Attributes:
        layout: the layout found, e.g. `per_expert`.
    """

    def __init__(self, message: str, *, path: str, layout: str, field: str | None = None) -> None:
        super().__init__(message, path=path, field=field)
        self.layout = layout


class CommandError(MachError):
    """A command cannot do what its arguments ask; `exit_status` is the process's."""

    def __init__(self, message: str, *, exit_status: int = 2) -> None:
        super().__init__(message)
        self.exit_status = exit_status
