"""Owns the making of an engine checkpoint from a source: the steps and their order, not their details."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mach.io.config_file import CONFIG_NAME, ConfigFields
from mach.io.inspection import CheckpointInspection, inspect_checkpoint, inspect_tensors
from mach.io.model_tensors import weights_problem
from mach.io.safetensors_header import INDEX_NAME, TensorEntry
from mach.io.sidecar_layout import DEFAULT_ALIGNMENT, DIRECTORY, padded
from mach_store.errors import PruneError
from mach_store.prune.engine_config import engine_config
from mach_store.prune.other_tensors import OtherTensors, other_tensors
from mach_store.prune.output_directory import MARKER, OutputDirectory
from mach_store.prune.plan import KeepPlan, keep_all, read_plan
from mach_store.prune.progress import ByteCounter, Listener
from mach_store.prune.sidecar_records import SidecarRecords
from mach_store.prune.source_files import small_files, source_fingerprint
from mach_store.safetensors_writer import OutputTensor, copy_file, write_safetensors
from mach_store.sidecar.expert_records import open_records
from mach_store.sidecar.packing import PackedRecords, Packing
from mach_store.sidecar.record import ExpertRecords
from mach_store.sidecar.sidecar_writer import SidecarWriter

ASIDE_NAME = "mtp.safetensors"
"""Weights of multi-token prediction: not `model*.safetensors`, which mlx-lm loads whatever the index says."""
MAX_SHARD_BYTES = 5 * 10**9
_SPARE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport:
    """What a run has made.

    Attributes:
        already_done: the output was there, made of the same source, plan and settings; nothing was written.
        kept: experts of each layer that stay.
        num_experts: experts of each layer in the source.
        layers: MoE layers.
        expert_bytes: bytes of the experts that stay.
        other_bytes: bytes of the other weights that stay.
        dropped: prefix → bytes of tensors that the engine has no use for.
    """

    already_done: bool
    kept: int
    num_experts: int
    layers: int
    expert_bytes: int
    other_bytes: int
    dropped: Mapping[str, int]


def prune_checkpoint(
    source: Path,
    output: Path,
    *,
    plan: Path | None = None,
    candidate_id: str | None = None,
    packing: Packing | None = None,
    alignment: int = DEFAULT_ALIGNMENT,
    overwrite: bool = False,
    listener: Listener | None = None,
) -> PruneReport:
    """Slice `source` into the engine layout at `output`, with the experts that the plan keeps.

    Args:
        source: a checkpoint directory whose experts `open_records` reads, or an engine checkpoint.
        output: the directory to make.
        plan: keep lists (`mach_store.prune.plan`); every expert stays without one.
        candidate_id: which of them; only with a plan.
        packing: pack plain-float experts so; packed ones must agree. None keeps what is there.
        alignment: bytes that the sidecar's records start at multiples of.
        overwrite: replace an output that an earlier run made of something else.
        listener: told how far the run is.

    Raises:
        CheckpointError: the source is malformed.
        PlanError: the plan is, or it does not fit the source.
        PruneError, SidecarExportError: it cannot be pruned so, what came out could not be loaded, the output
            is not to be replaced, or the disk refuses.
        SidecarCorruptionError: a record of an engine checkpoint is not what was written.
    """
    _require_apart(source, output)
    inspection = inspect_checkpoint(source)
    shape = inspection.shape
    if not shape.moe_layers:
        raise PruneError(f"{source}: {inspection.layout_reason}: there is nothing to slice")
    if plan is None and candidate_id is not None:
        raise PruneError(f"--candidate-id {candidate_id}: names a line of a plan: give --plan too")
    keep = keep_all(shape) if plan is None else read_plan(plan, candidate_id, shape)
    records = _open(inspection, packing)
    config = engine_config(inspection, records.schemas, keep.num_experts)
    others = other_tensors(inspection, keep)
    _require_loadable(inspection, config, others)
    files = small_files(inspection.directory, MARKER)
    settings = json.dumps([sorted(keep.experts.items()), repr(packing), alignment])
    fingerprint = source_fingerprint(inspection, files, settings)
    report = PruneReport(
        already_done=False,
        kept=keep.num_experts,
        num_experts=shape.num_experts,
        layers=len(shape.moe_layers),
        expert_bytes=keep.num_experts * sum(schema.nbytes for schema in records.schemas.values()),
        other_bytes=sum(tensor.nbytes for tensor in (*others.model, *others.aside)),
        dropped=others.dropped,
    )
    with OutputDirectory(str(output), fingerprint, overwrite=overwrite) as target:
        try:
            if target.complete:
                target.discard()
                return replace(report, already_done=True)
            _require_space(target, records, report, alignment)
            target.begin()
            counter = ByteCounter(report.layers, report.expert_bytes + report.other_bytes, listener)
            _write_experts(target, inspection, records, keep, alignment, fingerprint, counter)
            _write_weights(target, inspection, others, counter)
            _write_small_files(target, inspection, config, files)
            if source_fingerprint(inspection, files, settings) != fingerprint:
                raise PruneError(f"{source}: changed while it was read: run again when it is at rest")
            target.finish()
        except OSError as error:
            raise PruneError(
                f"{error.filename or target.partial}: {error.strerror or error}; what is done so far is kept "
                f"in {target.partial}, and the same command goes on from it"
            ) from error
    return report


def _require_apart(source: Path, output: Path) -> None:
    real, new = os.path.realpath(source), os.path.realpath(output)
    if os.path.commonpath([real, new]) == real:
        raise PruneError(f"{output}: is the source, or inside it: give an --output apart from it")
    if os.path.commonpath([real, new]) == new:
        raise PruneError(f"{output}: holds the source: give an --output apart from it")


def _open(inspection: CheckpointInspection, packing: Packing | None) -> ExpertRecords:
    if inspection.layout != "sliced":
        return open_records(inspection, packing)
    stored = SidecarRecords(inspection)
    if packing is None:
        return stored
    return PackedRecords(inspection.directory, stored, packing, inspection.adapter)


def _require_loadable(inspection: CheckpointInspection, config: dict[str, Any], others: OtherTensors) -> None:
    """Ask the loader's own check about what is going to be written, before anything is."""
    tensors = {
        tensor.name: TensorEntry(tensor.dtype, tensor.shape, "model.safetensors", 0, tensor.nbytes)
        for tensor in others.model
    }
    fields = ConfigFields(config, inspection.config.path)
    made = inspect_tensors(inspection.directory, fields, tensors, None)
    problem = weights_problem(made.adapter.model_type, fields, made.text_config, made.shape, made.others)
    if problem is not None:
        raise PruneError(f"{inspection.directory}: what came out could not be loaded: {problem}")


def _require_space(
    target: OutputDirectory, records: ExpertRecords, report: PruneReport, alignment: int
) -> None:
    """Before anything is written: what an interrupted run left is either used or deleted, and so counts."""
    strides = sum(padded(schema.nbytes, alignment) for schema in records.schemas.values())
    needed = report.kept * strides + report.other_bytes + _SPARE_BYTES
    have = sum(
        os.stat(os.path.join(root, name)).st_size
        for root, _, names in os.walk(target.partial)
        for name in names
    )
    status = os.statvfs(os.path.dirname(target.output))
    free = status.f_bavail * status.f_frsize
    if needed - have > free:
        raise PruneError(
            f"{target.output}: takes {needed / 1e9:.2f} GB, of which {have / 1e9:.2f} GB are there, but only "
            f"{free / 1e9:.2f} GB are free on this file system: free some, or give an --output elsewhere"
        )


def _write_experts(
    target: OutputDirectory,
    inspection: CheckpointInspection,
    records: ExpertRecords,
    keep: KeepPlan,
    alignment: int,
    fingerprint: str,
    counter: ByteCounter,
) -> None:
    layers = sorted(records.schemas)
    if target.sidecar_done:
        nbytes = keep.num_experts * sum(schema.nbytes for schema in records.schemas.values())
        counter.add(nbytes, layers=len(layers), taken_up=True)
        return
    with SidecarWriter(
        target.path(DIRECTORY),
        model_type=inspection.adapter.model_type,
        alignment=alignment,
        fingerprint=fingerprint,
    ) as writer:
        for layer in layers:
            schema, kept = records.schemas[layer], keep.experts[layer]
            if layer in writer.done:
                counter.add(len(kept) * schema.nbytes, layers=1, taken_up=True)
                continue
            writer.write_layer(layer, schema, counter.records(records.records(layer, kept)))
            counter.add(0, layers=1)
        writer.finish()


def _write_weights(
    target: OutputDirectory, inspection: CheckpointInspection, others: OtherTensors, counter: ByteCounter
) -> None:
    shards = _shards(others.model)
    packing: dict[str, str] = {}
    if others.aside:
        shards[ASIDE_NAME] = others.aside
        # config.json loses it, and what is kept byte for byte is read by it.
        foreign = inspection.config.values.get("quantization_config")
        if foreign is not None:
            packing["quantization_config"] = json.dumps(foreign)
    for name, tensors in shards.items():
        if target.done(name):
            counter.add(sum(tensor.nbytes for tensor in tensors), taken_up=True)
            continue
        counted = [replace(tensor, chunks=counter.chunks(tensor.chunks)) for tensor in tensors]
        metadata = packing if name == ASIDE_NAME else None
        target.record(name, write_safetensors(target.path(name), counted, metadata))
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(t.nbytes for tensors in shards.values() for t in tensors)},
            "weight_map": {t.name: name for name, tensors in shards.items() for t in tensors},
        }
        target.write(INDEX_NAME, json.dumps(index, indent=1).encode() + b"\n")


def _shards(tensors: Sequence[OutputTensor]) -> dict[str, Sequence[OutputTensor]]:
    """File name → tensors, in files of at most MAX_SHARD_BYTES where no single tensor is larger."""
    groups: list[list[OutputTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and size + tensor.nbytes > MAX_SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def _write_small_files(
    target: OutputDirectory, inspection: CheckpointInspection, config: dict[str, Any], files: list[str]
) -> None:
    for name in files:
        path = os.path.join(inspection.directory, name)
        if not target.done(name):
            os.makedirs(os.path.dirname(target.path(name)), exist_ok=True)
            target.record(name, copy_file(path, target.path(name)))
    if config == inspection.config.values:
        with open(os.path.join(inspection.directory, CONFIG_NAME), "rb") as handle:
            target.write(CONFIG_NAME, handle.read())
    else:
        target.write(CONFIG_NAME, json.dumps(config, indent=2).encode() + b"\n")
