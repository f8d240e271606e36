"""Owns the estimate of decode speed while streaming, from sizes and this machine's measured bandwidths.

An estimate, given as a range: the ends differ in routing skew, in overlap of reading with computing, and in
how near the kernels come to the machine's bandwidth. `docs/preflight.md` has the formula and measured runs.
"""

from __future__ import annotations

from typing import NamedTuple

from mach.io.inspection import CheckpointInspection
from mach.preflight.bandwidth import Bandwidth
from mach.preflight.memory import MemoryEstimate

# (slow end, fast end) of each assumption.
SKEW_EXPONENT = (1.0, 0.5)
"""Hit rate = (share of experts in the bank) ** exponent: uniform routing, and skewed routing."""
METAL_EFFICIENCY = (0.4, 0.85)
"""Share of the memory bandwidth that quantised products reach on a GPU."""
CPU_MACS_PER_SECOND = (1.0e9, 2.5e9)
"""Multiply-adds per second of MLX's CPU products (research: about 1.5e9 quantised, 2e9 float32)."""
CPU_MODE_FACTOR = {"mxfp4": 2.5}
"""How much faster than affine products MLX's CPU does others (research: 3.3 ms against 8.5 ms)."""
LAYER_SECONDS = {"cpu": (1.2e-3, 0.3e-3), "metal": (0.4e-3, 0.05e-3)}
"""Graph building and synchronising per layer."""


class SpeedEstimate(NamedTuple):
    """Predicted decoding, one sequence, streaming; pairs are (slow end, fast end).

    Attributes:
        tokens_per_second: the prediction.
        hit_rate: part of the routed experts found in the bank.
        active_bytes: weights that a token's computation touches.
        miss_bytes: bytes read from disk per token.
        bandwidth: what it rests on.
    """

    tokens_per_second: tuple[float, float]
    hit_rate: tuple[float, float]
    active_bytes: int
    miss_bytes: tuple[int, int]
    bandwidth: Bandwidth


def estimate_speed(
    inspection: CheckpointInspection, memory: MemoryEstimate, bandwidth: Bandwidth
) -> SpeedEstimate:
    """The decode speed of `--streaming` with the bank that `memory` assumes."""
    top_k, sizes = inspection.shape.top_k, memory.experts
    record_bytes = top_k * sum(sizes.layer_records.values())
    others = _active_other_bytes(inspection)
    backend = memory.machine.backend
    seconds, hits, misses = [], [], []
    for end in (0, 1):
        hit = 1.0 if memory.bank_share >= 1 else memory.bank_share ** SKEW_EXPONENT[end]
        miss = round((1 - hit) * record_bytes)
        if backend == "cpu":
            compute = _active_macs(inspection, others, record_bytes) / CPU_MACS_PER_SECOND[end]
        else:
            compute = (others + record_bytes) / (bandwidth.memory * METAL_EFFICIENCY[end])
        # The engine reads through the page cache: what fits beside it comes from there after the first time.
        cached = end == 1 and _fits_page_cache(memory)
        disk = miss / (max(bandwidth.memory, bandwidth.disk) if cached else bandwidth.disk)
        work = compute + disk if end == 0 else max(compute, disk)
        seconds.append(work + inspection.shape.num_layers * LAYER_SECONDS[backend][end])
        hits.append(hit)
        misses.append(miss)
    return SpeedEstimate(
        tokens_per_second=(1 / seconds[0], 1 / seconds[1]),
        hit_rate=(hits[0], hits[1]),
        active_bytes=others + record_bytes,
        miss_bytes=(misses[0], misses[1]),
        bandwidth=bandwidth,
    )


def _fits_page_cache(memory: MemoryEstimate) -> bool:
    available = memory.machine.available_bytes
    return available is not None and available - memory.streaming.working_set >= memory.experts.total_records


def _active_other_bytes(inspection: CheckpointInspection) -> int:
    """Non-expert bytes per token: all but an embedding that is not the head too, of which a row is read."""
    tensors = inspection.tensors
    if not any("lm_head." in name for name in tensors):
        return inspection.other_bytes
    rows = sum(entry.nbytes for name, entry in tensors.items() if ".embed_tokens." in name)
    return inspection.other_bytes - rows


def _active_macs(inspection: CheckpointInspection, other_bytes: int, record_bytes: int) -> float:
    bits = inspection.quantization.bits or 16
    packed = inspection.other_dtype_bytes.get("U32", 0)
    share = packed / inspection.other_bytes if inspection.other_bytes else 0.0
    other_bits = share * bits + (1 - share) * 16
    factor = CPU_MODE_FACTOR.get(inspection.quantization.mode, 1.0)
    return 8 * (record_bytes / bits / factor + other_bytes / other_bits)
