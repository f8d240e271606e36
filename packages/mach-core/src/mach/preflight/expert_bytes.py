"""Owns the sizes of the routed experts in memory, from a sidecar's layout or the safetensors headers.

It mirrors what mach-store allocates: on the CPU backend bfloat16 tensors are widened to float32, unless
native kernels compute with them as they are stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from mach.io.inspection import CheckpointInspection
from mach.io.kernel_packings import kernels_take
from mach.preflight.machine import Machine

if TYPE_CHECKING:
    from mach.io.sidecar_layout import RecordSchema, SidecarLayout

STAGED_EXPERTS = 4
"""Quantised experts that bf16_streaming reads at once before it dequantises them."""


class ExpertSizes(NamedTuple):
    """Sizes of the routed experts as the engine holds them.

    Attributes:
        experts: routed experts of one layer.
        layer_slots: layer → bytes of memory per expert.
        layer_records: layer → bytes on disk per expert.
        arena_slot: bytes per expert of the transient-prefill arenas of all record shapes.
        layer_floats: layer → bytes per expert in the bank of bf16_streaming; empty where that cannot be.
        float_arenas: its arenas, one per record shape: bytes per expert, and per expert that is staged.
        narrow_floats: whether its passes are computed in the arena, on widened copies.
    """

    experts: int
    layer_slots: dict[int, int]
    layer_records: dict[int, int]
    arena_slot: int
    layer_floats: dict[int, int]
    float_arenas: tuple[tuple[int, int], ...]
    narrow_floats: bool

    def scratch(self, slots: int) -> int:
        """Bytes of the transient-prefill arena for so many experts."""
        return self.arena_slot * slots

    def float_scratch(self, slots: int) -> int:
        """The same for bf16_streaming, with what bank and arena stage."""
        staged = STAGED_EXPERTS + min(STAGED_EXPERTS, slots)
        return sum(wide * slots + staged * packed for wide, packed in self.float_arenas) if slots else 0

    @property
    def total_slots(self) -> int:
        """Bytes of memory with every expert resident."""
        return self.experts * sum(self.layer_slots.values())

    @property
    def total_records(self) -> int:
        """Bytes of all experts on disk, without padding."""
        return self.experts * sum(self.layer_records.values())

    def least_bank(self, top_k: int) -> int:
        """The smallest bank in which one token's experts fit."""
        return top_k * sum(self.layer_slots.values())

    def least_float_bank(self, top_k: int) -> int:
        """The same for bf16_streaming."""
        return top_k * sum(self.layer_floats.values())


def expert_sizes(
    inspection: CheckpointInspection, layout: SidecarLayout | None, machine: Machine
) -> ExpertSizes:
    """Sizes of the experts, from the sidecar if there is one, else from the safetensors headers."""
    experts = inspection.shape.num_experts
    if layout is not None:
        slots = {layer.index: _schema_slot(layer.schema, machine) for layer in layout.layers}
        records = {layer.index: layer.schema.nbytes for layer in layout.layers}
        shapes = {layer.schema: slots[layer.index] for layer in layout.layers}
        scratch = sum(shapes.values())
    else:
        slots, records = {}, {}
        for layer, sizes in inspection.expert_layer_bytes.items():
            records[layer] = sum(sizes.values()) // experts
            as_stored = _kernels_take(inspection, layer, machine)
            slots[layer] = widened(sizes, machine.backend, () if as_stored else ("BF16",)) // experts
        # Layers of equal size have, but for oddities, equal record shapes.
        scratch = sum(set(slots.values()))
    floats, arenas, narrow = _float_sizes(inspection, machine)
    return ExpertSizes(experts, slots, records, scratch, floats, arenas, narrow)


def _kernels_take(inspection: CheckpointInspection, layer: int, machine: Machine) -> bool:
    """Whether native kernels compute with the experts of `layer` as the safetensors files hold them."""
    if not machine.kernels:
        return False
    modules = [inspection.expert_module(layer, name) for name in inspection.stacked.get(layer, {})]
    packings = [inspection.quantization.scheme_for(module) for module in modules]
    return kernels_take(packings, inspection.expert_layer_bytes[layer])


def _float_sizes(
    inspection: CheckpointInspection, machine: Machine
) -> tuple[dict[int, int], tuple[tuple[int, int], ...], bool]:
    """Sizes in bf16_streaming.

    Layer → bytes per expert in its bank; arenas and whether they compute, as in `ExpertSizes`.
    """
    shape, narrow = inspection.shape, False
    floats: dict[int, int] = {}
    arenas: dict[int, tuple[int, int]] = {}
    for layer, sizes in inspection.expert_layer_bytes.items():
        stored, staged = dict(sizes), 0
        for parts in inspection.stacked.get(layer, {}).values():
            if "scales" not in parts:
                continue
            staged = widened(sizes, "cpu", ("BF16",))  # whole records, scales in float32
            for component, entry in parts.items():
                if component != "bias":
                    stored[entry.dtype] -= entry.nbytes
            weights = shape.num_experts * shape.expert_width * shape.hidden_size
            stored["BF16"] = stored.get("BF16", 0) + 2 * weights
        floats[layer] = sum(stored.values()) // shape.num_experts
        as_floats = machine.kernels and kernels_take((), [dtype for dtype, size in stored.items() if size])
        narrow |= machine.backend == "cpu" and not as_floats
        wide = widened(stored, machine.backend, () if as_floats else ("BF16",)) // shape.num_experts
        arenas[floats[layer]] = (wide, staged // shape.num_experts)
    return floats, tuple(arenas.values()), narrow


def _schema_slot(schema: RecordSchema, machine: Machine) -> int:
    as_stored = machine.kernels and kernels_take(schema.quantization, [s.dtype for s in schema.segments])
    sizes: dict[str, int] = {}
    for segment in schema.segments:
        sizes[segment.dtype] = sizes.get(segment.dtype, 0) + segment.nbytes
    return widened(sizes, machine.backend, () if as_stored else ("bfloat16",))


def widened(sizes: Mapping[str, int], backend: str, dtypes: tuple[str, ...]) -> int:
    """Bytes in memory of tensors given by dtype: `dtypes` double on the CPU backend."""
    return sum(size * (2 if backend == "cpu" and dtype in dtypes else 1) for dtype, size in sizes.items())
