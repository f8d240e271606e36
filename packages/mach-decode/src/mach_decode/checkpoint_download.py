"""Owns the step from a name to a checkpoint directory when the name may be a hub repository."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from mach.errors import CheckpointNotFoundError
from mach.io.checkpoint_path import resolve_checkpoint

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken", "expert_sidecar/*"]


def obtain_checkpoint(name: str) -> Path:
    """The directory of a checkpoint: local, installed, or downloaded from the hub (cached there).

    Raises:
        CheckpointNotFoundError: it is none of these, or the hub cannot be reached or has no such repository.
        CheckpointError: the directory is not a checkpoint.
    """
    if Path(name).exists() or not _REPOSITORY.fullmatch(name):
        return resolve_checkpoint(name)
    try:
        directory = snapshot_download(name, allow_patterns=_FILES)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise CheckpointNotFoundError(
            f"{name}: not a directory here, and not to be had from the hub ({type(error).__name__}: "
            f"{first_line}); download it first and give its directory",
            path=name,
        ) from error
    return resolve_checkpoint(directory)
