"""Owns the reading of a file of prompts: plain lines, or JSON strings."""

from __future__ import annotations

import json
from pathlib import Path

from mach.errors import CommandError

MAX_BYTES = 64 << 20
"""Of a file of prompts: they are all held."""


def read_prompts(path: Path) -> list[str]:
    """The prompts in `path`, at least one: a line each, JSON strings where the name ends in `.jsonl`.

    Raises:
        CommandError: the file cannot be read, is too large, is not UTF-8, or a line is not what it should be.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise CommandError(f"{path}: {size} bytes are too many for prompts: give at most {MAX_BYTES}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{path}: is not UTF-8 at byte {error.start}") from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise CommandError(f"{path}: holds no prompt: write one on each line")
    if path.suffix != ".jsonl":
        return [line.removesuffix("\r") for _, line in lines]
    prompts = []
    for number, line in lines:
        try:
            prompt = json.loads(line)
        except ValueError as error:
            raise CommandError(f"{path}: line {number}: is not JSON ({error})") from error
        if not isinstance(prompt, str):
            raise CommandError(f"{path}: line {number}: is not a JSON string")
        prompts.append(prompt)
    return prompts
