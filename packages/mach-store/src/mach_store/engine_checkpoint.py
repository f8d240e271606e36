"""Owns the way back from the engine layout to the stacked one; `mach_store.prune` owns the way there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mach.errors import UnsupportedLayoutError
from mach.io.config_file import CONFIG_NAME
from mach.io.inspection import CheckpointInspection, ExpertTensorNames, inspect_checkpoint
from mach.io.sidecar_layout import LayerFile, Segment, read_layout
from mach_store.errors import SidecarCorruptionError
from mach_store.prune.output_directory import MARKER
from mach_store.prune.source_files import small_files
from mach_store.safetensors_writer import OutputTensor, copy_file, copy_of, write_safetensors
from mach_store.sidecar.verification import verify_sidecar
from mach_store.stacked_source import DTYPE_NAMES

WEIGHTS_NAME = "model.safetensors"
_SAFETENSORS_NAMES = {long: short for short, long in DTYPE_NAMES.items()}


def write_stacked_checkpoint(source: Path, output: Path) -> None:
    """Turn an engine checkpoint into an axis-0 stacked one, which mlx-lm and `--no-streaming` load.

    Raises:
        CheckpointError: the source is malformed.
        UnsupportedLayoutError: the source has no sidecar.
        SidecarCorruptionError: a record of it is not what was written.
        PruneError: a file beside the weights is larger than any that belongs there.
        OSError: the disk refuses.
    """
    inspection = inspect_checkpoint(source)
    if inspection.sidecar_directory is None:
        raise UnsupportedLayoutError(
            f"{source}: has no expert sidecar to stack", path=str(source), layout=inspection.layout
        )
    # The copies have no checksums: a bad record found later would look like a good one.
    bad = verify_sidecar(inspection.sidecar_directory)
    if bad:
        raise SidecarCorruptionError(
            f"{bad[0]}; export the sidecar again, and check the disk",
            path=bad[0].path,
            layer=bad[0].layer,
            expert=bad[0].expert,
        )
    layout = read_layout(inspection.sidecar_directory)
    output.mkdir(parents=True, exist_ok=True)
    _write_others(inspection, output)
    for layer in layout.layers:
        path = os.path.join(inspection.sidecar_directory, layer.file)
        block = inspection.adapter.switch_block(layer.index)
        tensors = [
            OutputTensor(
                name=f"{block}.{segment.name}",
                dtype=_SAFETENSORS_NAMES[segment.dtype],
                shape=(layer.num_experts, *segment.shape),
                nbytes=layer.num_experts * segment.nbytes,
                chunks=_column(path, layer, segment),
            )
            for segment in layer.schema.segments
        ]
        write_safetensors(str(output / f"model-experts-{layer.index:05d}.safetensors"), tensors)


def _column(path: str, layer: LayerFile, segment: Segment) -> Iterator[bytes]:
    """One segment of every record of a layer, expert by expert."""
    with open(path, "rb") as handle:
        for expert in range(layer.num_experts):
            handle.seek(expert * layer.stride + segment.offset)
            yield handle.read(segment.nbytes)


def _write_others(inspection: CheckpointInspection, output: Path) -> None:
    """Everything of a checkpoint but its routed experts."""
    names = ExpertTensorNames(inspection.adapter)
    kept = [copy_of(name, e) for name, e in inspection.tensors.items() if names.place(name) is None]
    write_safetensors(str(output / WEIGHTS_NAME), kept)
    for name in (CONFIG_NAME, *small_files(inspection.directory, MARKER)):
        (output / name).parent.mkdir(exist_ok=True)
        copy_file(os.path.join(inspection.directory, name), str(output / name))
