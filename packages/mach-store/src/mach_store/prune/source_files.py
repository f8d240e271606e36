"""Owns which small files of a source go along, and the fingerprint that names the source as it is now."""

from __future__ import annotations

import hashlib
import os
import stat

from mach.io.config_file import CONFIG_NAME
from mach.io.inspection import CheckpointInspection
from mach.io.safetensors_header import INDEX_NAME
from mach.io.sidecar_layout import LAYOUT_NAME
from mach_store.errors import PruneError

MAX_SMALL_BYTES = 256 << 20
_WEIGHTS = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")
"""Other forms of the same weights; the engine reads none of them."""
_LEFT_OUT = (CONFIG_NAME, INDEX_NAME, "hf_quant_config.json")
"""Written anew, or, the last, a statement on packing that config.json then makes."""
CHAT_TEMPLATES = "additional_chat_templates"


def small_files(directory: str, own_marker: str) -> list[str]:
    """Names, relative to `directory`, of the files that are copied: tokenizer, templates, licence and so on.

    Args:
        directory: the source.
        own_marker: mach-prune's own file in a source that it made, which is written anew.

    Raises:
        PruneError: one is larger than any such file.
    """
    names: list[str] = []
    for name in sorted(os.listdir(directory)):
        if name.startswith(".") or name.endswith(_WEIGHTS) or name in (*_LEFT_OUT, own_marker):
            continue
        if name == CHAT_TEMPLATES and os.path.isdir(os.path.join(directory, name)):
            inner = sorted(os.listdir(os.path.join(directory, name)))
            names.extend(os.path.join(name, template) for template in inner)
        else:
            names.append(name)
    files = []
    for name in names:
        status = os.stat(os.path.join(directory, name))
        if not stat.S_ISREG(status.st_mode):
            continue
        if status.st_size > MAX_SMALL_BYTES:
            raise PruneError(
                f"{os.path.join(directory, name)}: {status.st_size} bytes are too many for a tokenizer or a "
                "text: move it out of the source, if it does not belong to the model"
            )
        files.append(name)
    return files


def source_fingerprint(inspection: CheckpointInspection, files: list[str], settings: str) -> str:
    """Names the source's files as they are now and the settings, in 64 hexadecimal digits.

    Weights count by name, size and time of change; config.json and the sidecar's layout, which holds a
    checksum of every record, by content.
    """
    digest = hashlib.sha256(settings.encode())
    weights = {entry.file for entry in inspection.tensors.values()}
    others = (os.path.join(inspection.directory, name) for name in files)
    for path in sorted({*weights, *others}):
        status = os.stat(path)
        name = os.path.relpath(path, inspection.directory)
        digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    whole = [os.path.join(inspection.directory, CONFIG_NAME)]
    if inspection.sidecar_directory is not None:
        whole.append(os.path.join(inspection.sidecar_directory, LAYOUT_NAME))
    for path in whole:
        with open(path, "rb") as handle:
            digest.update(hashlib.sha256(handle.read()).digest())
    return digest.hexdigest()
