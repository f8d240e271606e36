"""Owns the memory model: what the engine takes for a checkpoint, part by part, and whether that fits here.

It mirrors what mach-store allocates: on the CPU backend all floats but the experts' are widened to float32,
and theirs too where native kernels do not compute; the bank is a whole number of slots; the scratch arena
holds 16 experts of each record shape and is made only if the bank cannot hold everything.
`docs/preflight.md` shows the arithmetic and measured figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from mach.io.arch_adapter import MAX_WIDTH
from mach.io.inspection import CheckpointInspection, ExpertTensorNames
from mach.io.kernel_packings import kernels_take
from mach.io.model_tensors import model_config
from mach.preflight.kv_cache_bytes import KvBytes, kv_cache_bytes
from mach.preflight.machine import Machine

if TYPE_CHECKING:
    from mach.io.sidecar_layout import RecordSchema, SidecarLayout

RUNTIME_BYTES = 100_000_000
"""Interpreter, MLX and libraries (measured on Linux with the CPU backend, `docs/preflight.md`)."""
LOADER_RESERVE_BYTES = 512 << 20
"""What the loader wants free besides weights before it starts; more than it usually needs."""
TRANSIENT_MIN_TOKENS = 32
"""From so many tokens on, a prefill goes past the bank through the scratch arena."""
TRANSIENT_BYTES, TRANSIENT_TOKENS = 25_000_000, 256
"""Such a prefill leaves MLX so much in free buffers, growing up to so many tokens (measured)."""
PREFILL_CHUNK = 512
"""Prompt tokens per forward pass while streaming."""
SCRATCH_EXPERTS = 16
STAGED_EXPERTS = 4
"""Quantised experts that bf16_streaming reads at once before it dequantises them."""
FITS_BELOW = 0.85
"""Share of the available memory up to which a working set fits; beyond it is tight, beyond all too big."""

_SWAPPED_PARTS = ("other weights", "draft")
"""Parts that mlx-lm's own model has not: one part holds all its weights, and no draft goes with it."""

VERDICTS = ("fits", "tight", "wont_fit", "unknown")


class ExpertSizes(NamedTuple):
    """Sizes of the routed experts as the engine holds them.

    Attributes:
        experts: routed experts of one layer.
        layer_slots: layer → bytes of memory per expert.
        layer_records: layer → bytes on disk per expert.
        scratch_bytes: the transient-prefill arena, if it is needed.
        layer_floats: layer → bytes per expert in the bank of bf16_streaming; empty where that cannot be.
        float_scratch_bytes: its arena, and what dequantising stages.
    """

    experts: int
    layer_slots: dict[int, int]
    layer_records: dict[int, int]
    scratch_bytes: int
    layer_floats: dict[int, int]
    float_scratch_bytes: int

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


class ModeEstimate(NamedTuple):
    """One residency mode's memory.

    Attributes:
        parts: label → bytes, whose sum is the working set.
        verdict: one of VERDICTS.
    """

    parts: dict[str, int]
    verdict: str

    @property
    def working_set(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values())


class MemoryEstimate(NamedTuple):
    """The memory of one checkpoint on one machine.

    Attributes:
        machine: where.
        context: tokens of key-value state.
        kv: its bytes.
        experts: the routed experts' sizes.
        bank_bytes: the expert cache.
        bank_share: part of all experts that it holds, 0 to 1.
        streaming: `--streaming`.
        resident: `--no-streaming`.
        float_bank_bytes: the expert cache of bf16_streaming.
        bf16_streaming: that mode; None where the layout has no slices.
        unswapped: `--backend openai`.
    """

    machine: Machine
    context: int
    kv: KvBytes
    experts: ExpertSizes
    bank_bytes: int
    bank_share: float
    streaming: ModeEstimate
    resident: ModeEstimate
    float_bank_bytes: int
    bf16_streaming: ModeEstimate | None
    unswapped: ModeEstimate


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
            slots[layer] = _widened(sizes, machine.backend, () if as_stored else ("BF16",)) // experts
        # Layers of equal size have, but for oddities, equal record shapes.
        scratch = sum(set(slots.values()))
    floats, float_scratch = _float_sizes(inspection, machine)
    return ExpertSizes(
        experts, slots, records, scratch * min(SCRATCH_EXPERTS, experts), floats, float_scratch
    )


def _kernels_take(inspection: CheckpointInspection, layer: int, machine: Machine) -> bool:
    """Whether native kernels compute with the experts of `layer` as the safetensors files hold them."""
    if not machine.kernels:
        return False
    modules = [inspection.expert_module(layer, name) for name in inspection.stacked.get(layer, {})]
    packings = [inspection.quantization.scheme_for(module) for module in modules]
    return kernels_take(packings, inspection.expert_layer_bytes[layer])


def _float_sizes(inspection: CheckpointInspection, machine: Machine) -> tuple[dict[int, int], int]:
    """Sizes in bf16_streaming: layer → bytes per expert in its bank; bytes of arena and staging."""
    shape = inspection.shape
    floats: dict[int, int] = {}
    arenas: dict[int, int] = {}
    for layer, sizes in inspection.expert_layer_bytes.items():
        stored, staged = dict(sizes), 0
        for parts in inspection.stacked.get(layer, {}).values():
            if "scales" not in parts:
                continue
            staged = _widened(sizes, "cpu", ("BF16",))  # whole records, scales in float32
            for component, entry in parts.items():
                if component != "bias":
                    stored[entry.dtype] -= entry.nbytes
            weights = shape.num_experts * shape.expert_width * shape.hidden_size
            stored["BF16"] = stored.get("BF16", 0) + 2 * weights
        floats[layer] = sum(stored.values()) // shape.num_experts
        as_floats = machine.kernels and kernels_take((), [dtype for dtype, size in stored.items() if size])
        slots = min(max(SCRATCH_EXPERTS, 1 if as_floats else shape.top_k), shape.num_experts)
        wide = slots * _widened(stored, machine.backend, () if as_floats else ("BF16",)) // shape.num_experts
        readers = STAGED_EXPERTS + min(STAGED_EXPERTS, slots)  # the bank's and the arena's
        arenas[floats[layer]] = wide + readers * staged // shape.num_experts
    return floats, sum(arenas.values())


def estimate_memory(
    inspection: CheckpointInspection,
    layout: SidecarLayout | None,
    machine: Machine,
    *,
    context: int,
    expert_cache_bytes: int | None,
    draft_bytes: int = 0,
) -> MemoryEstimate:
    """The memory that the engine would take.

    Args:
        inspection: the checkpoint, with its headers read.
        layout: its sidecar's layout if it has a valid one.
        machine: where it is to run.
        context: tokens of key-value state.
        expert_cache_bytes: `--expert-cache-gb` in bytes; None takes the loader's default, all experts or half
            of what is free.
        draft_bytes: weights of a draft.

    Raises:
        ConfigError: config.json lacks what the key-value estimate needs.
    """
    sizes = expert_sizes(inspection, layout, machine)
    others = _widened(inspection.other_dtype_bytes, machine.backend, ("BF16", "F16"))
    adapter, element = inspection.adapter, 4 if machine.backend == "cpu" else 2
    config = model_config(adapter.model_type, inspection.config, inspection.text_config)
    kv = kv_cache_bytes(adapter, config, context, element)
    everything = sizes.total_slots
    bank = _bank_bytes(sizes.layer_slots, everything, others, machine, expert_cache_bytes)
    share = bank / everything if everything else 1.0
    common = {
        "other weights": others,
        f"KV at {context} tokens": kv.total,
        "draft": draft_bytes,
        "prefill activations": _activation_bytes(inspection, machine.backend, context),
        "load transient": _load_transient(inspection, machine.backend),
        "runtime": RUNTIME_BYTES,
    }
    scratch = 0
    if bank < everything and context >= TRANSIENT_MIN_TOKENS:
        scratch = sizes.scratch_bytes
        scratch += TRANSIENT_BYTES * min(context, TRANSIENT_TOKENS) // TRANSIENT_TOKENS
    streaming = {"expert cache": bank, "prefill scratch": scratch} | common
    resident = {"all experts": everything} | common
    reserve = inspection.other_bytes + LOADER_RESERVE_BYTES
    float_bank, bf16 = 0, None
    if sizes.layer_floats and inspection.layout in ("stacked", "per_expert", "fused"):
        all_floats = sizes.experts * sum(sizes.layer_floats.values())
        float_bank = _bank_bytes(sizes.layer_floats, all_floats, others, machine, expert_cache_bytes)
        # With stock operations on the CPU a pass computes in the arena; otherwise only what does not fit the
        # bank goes there.
        through_arena = machine.backend == "cpu" and not machine.kernels
        arena = sizes.float_scratch_bytes if through_arena or float_bank < all_floats else 0
        parts = {"expert cache": float_bank, "arena": arena} | common
        bf16 = _judged(parts, machine, 0 if expert_cache_bytes is None else float_bank + reserve)
    sizes_by_dtype: dict[str, int] = {}
    for entry in inspection.tensors.values():
        sizes_by_dtype[entry.dtype] = sizes_by_dtype.get(entry.dtype, 0) + entry.nbytes
    whole = _widened(sizes_by_dtype, machine.backend, ("BF16", "F16"))
    own = {"all weights": whole}
    own |= {label: size for label, size in common.items() if label not in _SWAPPED_PARTS}
    return MemoryEstimate(
        machine=machine,
        context=context,
        kv=kv,
        experts=sizes,
        bank_bytes=bank,
        bank_share=share,
        streaming=_judged(streaming, machine, 0 if expert_cache_bytes is None else bank + reserve),
        resident=_judged(resident, machine, inspection.expert_bytes + reserve),
        float_bank_bytes=float_bank,
        bf16_streaming=bf16,
        unswapped=_judged(own, machine, whole + LOADER_RESERVE_BYTES),
    )


def _bank_bytes(
    layer_slots: Mapping[int, int], everything: int, others: int, machine: Machine, asked: int | None
) -> int:
    if asked is None:
        if machine.available_bytes is None:
            return everything
        asked = max(0, (machine.available_bytes - others - LOADER_RESERVE_BYTES) // 2)
    slot = max(layer_slots.values(), default=1)
    return min(everything, asked // slot * slot)


def _judged(parts: dict[str, int], machine: Machine, loader_wants: int) -> ModeEstimate:
    """The verdict on a mode; what the loader would refuse to start cannot fit, however small it is."""
    parts = {label: size for label, size in parts.items() if size}
    if machine.available_bytes is not None and loader_wants > machine.available_bytes:
        return ModeEstimate(parts, "wont_fit")
    return ModeEstimate(parts, memory_verdict(sum(parts.values()), machine.available_bytes))


def _activation_bytes(inspection: CheckpointInspection, backend: str, context: int) -> int:
    """Activations of one prefill chunk: the routed experts' rows dominate, and on a CPU attention scores."""
    shape, tokens = inspection.shape, min(context, PREFILL_CHUNK)
    element = 4 if backend == "cpu" else 2
    rows = shape.top_k * (2 * shape.hidden_size + 3 * shape.expert_width) + 8 * shape.hidden_size
    # GPU kernels never write the scores down.
    heads = inspection.text_config.integer("num_attention_heads", low=1, high=MAX_WIDTH)
    scores = heads * context if backend == "cpu" else 0
    return tokens * element * (rows + scores)


def _load_transient(inspection: CheckpointInspection, backend: str) -> int:
    """While a float tensor is widened on a CPU, the original is there as well: the largest counts."""
    if backend != "cpu":
        return 0
    names = ExpertTensorNames(inspection.adapter)
    largest = 0
    for name, entry in inspection.tensors.items():
        if entry.dtype in ("BF16", "F16") and entry.nbytes > largest and names.place(name) is None:
            largest = entry.nbytes
    return largest


def memory_verdict(working_set: int, available: int | None) -> str:
    """`fits`, `tight` or `wont_fit` for a working set in the available memory; `unknown` without that."""
    if available is None:
        return "unknown"
    if working_set > available:
        return "wont_fit"
    return "fits" if working_set <= FITS_BELOW * available else "tight"


def _schema_slot(schema: RecordSchema, machine: Machine) -> int:
    as_stored = machine.kernels and kernels_take(schema.quantization, [s.dtype for s in schema.segments])
    sizes: dict[str, int] = {}
    for segment in schema.segments:
        sizes[segment.dtype] = sizes.get(segment.dtype, 0) + segment.nbytes
    return _widened(sizes, machine.backend, () if as_stored else ("bfloat16",))


def _widened(sizes: Mapping[str, int], backend: str, dtypes: tuple[str, ...]) -> int:
    """Bytes in memory of tensors given by dtype: `dtypes` double on the CPU backend."""
    return sum(size * (2 if backend == "cpu" and dtype in dtypes else 1) for dtype, size in sizes.items())
