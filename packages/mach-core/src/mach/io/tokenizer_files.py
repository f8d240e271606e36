"""Owns the question whether a checkpoint directory holds a tokenizer that loading can use.

Cheap looks at small parts: an error page, a Git LFS pointer or a broken download shows; a well-formed
tokenizer of another model does not.
"""

from __future__ import annotations

import json
import os

from mach.errors import CheckpointError
from mach.io.config_file import read_json_object

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
"""Either makes a tokenizer; `vocab.json` or `tiktoken.model` alone the engine cannot read."""
MAX_JSON_BYTES = 16 << 20
_EDGE = 64


def has_tokenizer(directory: str) -> bool:
    """Whether one of TOKENIZER_FILES is there."""
    return any(os.path.isfile(os.path.join(directory, name)) for name in TOKENIZER_FILES)


def tokenizer_problem(directory: str) -> str | None:
    """Why an existing tokenizer or the files beside it cannot be loaded; None if nothing is to be seen."""
    path = os.path.join(directory, "tokenizer.json")
    if os.path.isfile(path) and not _looks_like_tokenizer(path):
        return (
            f"{path}: not a tokenizers file (an error page, or a pointer to one?): copy it from the model "
            "that this checkpoint was made from"
        )
    path = os.path.join(directory, "tokenizer_config.json")
    if os.path.isfile(path):
        try:
            read_json_object(path, MAX_JSON_BYTES)
        except CheckpointError as error:
            return str(error)
    return _generation_problem(os.path.join(directory, "generation_config.json"))


def _generation_problem(path: str) -> str | None:
    """The loader shrugs at generation_config.json that is no JSON, but not at JSON that is no object."""
    try:
        with open(path, "rb") as handle:
            document = json.loads(handle.read(MAX_JSON_BYTES).decode("utf-8"))
    except UnicodeDecodeError:
        return f"{path}: not UTF-8 text; fetch it again"
    except (OSError, ValueError, RecursionError):
        return None
    return None if isinstance(document, dict) else f"{path}: is not a JSON object; fetch it again"


def _looks_like_tokenizer(path: str) -> bool:
    try:
        with open(path, "rb") as handle:
            raw = handle.read()
    except OSError:
        return False
    return raw[:_EDGE].lstrip()[:1] == b"{" and raw[-_EDGE:].rstrip()[-1:] == b"}" and b'"model"' in raw
