"""Owns the step from what a user typed, a path or an installed checkpoint's name, to a directory.

It looks at file names only and never at the network.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mach.errors import CheckpointNotFoundError
from mach.io.config_file import CONFIG_NAME
from mach.io.entry_points import entry_points

if TYPE_CHECKING:
    from pathlib import Path

CHECKPOINT_GROUP = "mach.checkpoints"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tiktoken.model", "vocab.json")
"""Any shows that this is a whole checkpoint; which of them can be used is `tokenizer_files`' business."""


def resolve_checkpoint(name_or_path: str | os.PathLike[str], *, tokenizer: bool = True) -> Path:
    """`checkpoint_directory` as a Path."""
    from pathlib import Path  # noqa: PLC0415 - a tenth of what a whole `mach check` may take

    return Path(checkpoint_directory(name_or_path, tokenizer=tokenizer))


def checkpoint_directory(name_or_path: str | os.PathLike[str], *, tokenizer: bool = True) -> str:
    """The directory of the checkpoint that `name_or_path` means, ready to be inspected or loaded.

    An existing directory wins; otherwise an installed distribution may provide the name through the
    entry-point group `mach.checkpoints`.

    Args:
        name_or_path: a directory, or a name such as `mach-pico`.
        tokenizer: also require a tokenizer file.

    Raises:
        CheckpointNotFoundError: neither a directory nor an installed name, or the directory is empty or
            lacks config.json or (if required) a tokenizer.
    """
    given = os.fspath(name_or_path)
    directory = given if os.path.lexists(given) else bundled_directory(given)
    if directory is None:
        names = ", ".join(sorted(entry_points(CHECKPOINT_GROUP))) or "none"
        raise CheckpointNotFoundError(
            f"{given!r} is neither a directory here nor the name of an installed checkpoint (installed: "
            f"{names}); give the path of a checkpoint directory, and download a hub repository first",
            path=given,
        )
    _require_files(directory, tokenizer)
    return directory


def bundled_directory(name: str) -> str | None:
    """The directory of the installed checkpoint called `name`, or None if no distribution provides it."""
    entry = entry_points(CHECKPOINT_GROUP).get(name)
    return None if entry is None else os.fspath(entry.load()())


def _require_files(directory: str, tokenizer: bool) -> None:
    try:
        names = set(os.listdir(directory))
    except NotADirectoryError:
        raise CheckpointNotFoundError(
            f"{directory}: a file; give the directory that holds {CONFIG_NAME}", path=directory
        ) from None
    except OSError as error:
        raise CheckpointNotFoundError(
            f"{directory}: cannot be listed ({error.strerror})", path=directory
        ) from error
    if not names:
        raise CheckpointNotFoundError(f"{directory}: the directory is empty", path=directory)
    if CONFIG_NAME not in names:
        raise CheckpointNotFoundError(
            f"{directory}: no {CONFIG_NAME}, so this is not a checkpoint directory", path=directory
        )
    if tokenizer and not names.intersection(TOKENIZER_FILES):
        raise CheckpointNotFoundError(
            f"{directory}: no tokenizer (looked for {', '.join(TOKENIZER_FILES)}); copy it from the model "
            "that this checkpoint was made from",
            path=directory,
        )
