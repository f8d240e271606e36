"""Owns what becomes of each tensor that is no routed expert: copied, shrunk, widened, aside or left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mach.io.arch_adapter import MoeArchAdapter
from mach.io.inspection import CheckpointInspection
from mach.io.raw_experts import fp8_block
from mach.io.safetensors_header import DTYPE_BITS, TensorEntry
from mach_store.errors import PruneError
from mach_store.prune.block_scales import FP8, require_blocks, scale_of, widened
from mach_store.prune.expert_axis import (
    ExpertAxisNames,
    kept_rows,
    renumbered,
    require_experts,
    require_named_kept,
)
from mach_store.prune.plan import KeepPlan
from mach_store.safetensors_writer import OutputTensor, copy_of


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherTensors:
    """The tensors to write besides experts, and what is not written.

    Attributes:
        model: what the engine loads, in the source's order.
        aside: weights of multi-token prediction, byte for byte: kept, but in a file that loading passes by.
        dropped: prefix → bytes of tensors that the engine has no use for (vision and audio towers).
    """

    model: list[OutputTensor]
    aside: list[OutputTensor]
    dropped: Mapping[str, int]


def other_tensors(inspection: CheckpointInspection, plan: KeepPlan) -> OtherTensors:
    """Decide on every tensor of `inspection.others`; their bytes are read when they are written.

    Raises:
        PruneError: a router's tensor does not have the experts that config.json states, the plan drops an
            expert that a routing table names, or an fp8 weight has no scales that fit.
        ConfigError: the size of fp8 blocks is malformed.
    """
    adapter, others = inspection.adapter, inspection.others
    model: list[OutputTensor] = []
    aside: list[OutputTensor] = []
    dropped: dict[str, int] = {}
    loaded: dict[str, TensorEntry] = {}
    for name, entry in others.items():
        if is_prediction(adapter, name):
            aside.append(copy_of(name, entry))
        elif adapter.is_unused(name):
            prefix = _unused_prefix(adapter, name)
            dropped[prefix] = dropped.get(prefix, 0) + entry.nbytes
        else:
            loaded[name] = entry
    fp8 = {name: scale_of(name, loaded) for name, entry in loaded.items() if entry.dtype == FP8}
    axes = ExpertAxisNames(adapter)
    block = fp8_block(inspection) if fp8 else (0, 0)
    for name, entry in loaded.items():
        if name in fp8.values():
            continue
        place = axes.place(name)
        kept = None if place is None else plan.experts.get(place.layer)
        if place is not None and kept is not None:
            if place.kind == "rows":
                require_experts(name, entry, inspection.shape.num_experts)
            else:
                require_named_kept(name, entry, kept, inspection.shape.num_experts, place.layer)
            if len(kept) == inspection.shape.num_experts:
                kept = None
        if name in fp8:
            model.append(_widened(name, entry, fp8[name], loaded, block, kept))
        elif place is None or kept is None:
            model.append(copy_of(name, entry))
        elif place.kind == "rows":
            model.append(_tensor(name, entry.dtype, (len(kept), *entry.shape[1:]), kept_rows(entry, kept)))
        else:
            chunks = renumbered(name, entry, kept, inspection.shape.num_experts, place.layer)
            model.append(_tensor(name, entry.dtype, entry.shape, chunks))
    return OtherTensors(model=model, aside=aside, dropped=dropped)


def _widened(
    name: str,
    entry: TensorEntry,
    scale_name: str | None,
    tensors: Mapping[str, TensorEntry],
    block: tuple[int, int],
    kept: Sequence[int] | None,
) -> OutputTensor:
    if scale_name is None:
        raise PruneError(
            f"{entry.file}: {name} is {entry.dtype} without scales (neither {name}_scale_inv nor a "
            "scale beside it): fetch the checkpoint again"
        )
    scale = tensors[scale_name]
    require_blocks(name, entry, scale, block)
    rows = entry.shape[0] if kept is None else len(kept)
    return _tensor(name, "BF16", (rows, entry.shape[1]), widened(entry, scale, block, kept))


def _tensor(name: str, dtype: str, shape: tuple[int, ...], chunks: Iterator[bytes]) -> OutputTensor:
    nbytes = math.prod(shape) * DTYPE_BITS[dtype] // 8
    return OutputTensor(name=name, dtype=dtype, shape=shape, nbytes=nbytes, chunks=chunks)


def is_prediction(adapter: MoeArchAdapter, name: str) -> bool:
    """Whether a tensor belongs to multi-token prediction, which the models here do not load."""
    return adapter.is_unused(name) and "mtp." in _unused_prefix(adapter, name)


def _unused_prefix(adapter: MoeArchAdapter, name: str) -> str:
    bare = name.removeprefix("model.")
    return next(prefix for prefix in adapter.unused_prefixes if bare.startswith(prefix))
