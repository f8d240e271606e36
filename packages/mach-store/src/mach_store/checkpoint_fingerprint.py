"""Owns the name of a checkpoint as its files are now, for reports and traces."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from mach.io.config_file import CONFIG_NAME
from mach.io.sidecar_layout import LAYOUT_NAME


def checkpoint_fingerprint(directory: Path) -> str:
    """64 hexadecimal digits, equal for equal checkpoints.

    config.json and the sidecar's layout, which holds a checksum of every record, count by content, all other
    files by name and size.
    """
    digest = hashlib.sha256()
    for folder, _, names in sorted(os.walk(directory)):
        for name in sorted(names):
            path = Path(folder, name)
            digest.update(f"{path.relative_to(directory)} {path.stat().st_size}\n".encode())
            if name in (CONFIG_NAME, LAYOUT_NAME):
                digest.update(path.read_bytes())
    return digest.hexdigest()
