"""Owns the export of a checkpoint's experts into a sidecar."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from mach.io.inspection import CheckpointInspection, inspect_checkpoint
from mach.io.sidecar_layout import DEFAULT_ALIGNMENT, SidecarLayout
from mach_store.errors import SidecarExportError
from mach_store.sidecar.expert_records import Packing, open_records
from mach_store.sidecar.sidecar_writer import SidecarWriter

Progress = Callable[[int, int], None]
"""Told (layers done, layers)."""


def export_sidecar(
    checkpoint: Path,
    output: Path,
    *,
    num_experts: int | None = None,
    bits: int | None = None,
    group_size: int | None = None,
    mode: str | None = None,
    alignment: int = DEFAULT_ALIGNMENT,
    progress: Progress | None = None,
) -> SidecarLayout:
    """Write the expert sidecar of `checkpoint` into `output`, atomically; an interrupted export is resumed.

    Args:
        checkpoint: directory of an MLX checkpoint (stacked), or a raw one in any form of its family.
        output: the directory to make, usually `<checkpoint>/expert_sidecar`.
        num_experts: what the caller believes; a different number is an error. None does not ask.
        bits: bits per weight; floats, fp8 too, are packed so, packed ones must agree. None keeps what is
            there, and of fp8 bfloat16.
        group_size: weights per scale when packing; the family's default if None.
        mode: MLX's quantisation mode when packing; the family's default if None.
        alignment: bytes that records start at multiples of.
        progress: told after each layer.

    Raises:
        CheckpointError: the checkpoint is malformed.
        SidecarExportError: it cannot be exported so, or the disk refuses.
    """
    inspection = inspect_checkpoint(checkpoint)
    if num_experts is not None and num_experts != inspection.shape.num_experts:
        raise SidecarExportError(
            f"{checkpoint}: has {inspection.shape.num_experts} experts per layer, not {num_experts}"
        )
    if bits is None and (group_size is not None or mode is not None):
        raise SidecarExportError("group size and mode hold for packing: give the bits (--bits) too")
    wanted = None if bits is None else Packing(bits=bits, group_size=group_size, mode=mode)
    source = open_records(inspection, wanted)
    settings = f"{wanted} align={alignment}"
    with SidecarWriter(
        str(output),
        model_type=inspection.adapter.model_type,
        alignment=alignment,
        fingerprint=_fingerprint(inspection, settings),
    ) as writer:
        layers = sorted(source.schemas)
        for done, layer in enumerate(layers, 1):
            if layer not in writer.done:
                writer.write_layer(layer, source.schemas[layer], source.records(layer))
            if progress is not None:
                progress(done, len(layers))
        return writer.finish()


def _fingerprint(inspection: CheckpointInspection, settings: str) -> str:
    """Names the source files as they are now: an export is resumed only from the same ones."""
    digest = hashlib.sha256(settings.encode())
    for path in sorted({entry.file for entry in inspection.tensors.values()}):
        status = os.stat(path)
        digest.update(f"{os.path.basename(path)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
