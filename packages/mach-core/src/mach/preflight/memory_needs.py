"""Owns what a checkpoint takes in a residency, part by part: for the plan of loading and `mach check`."""

from __future__ import annotations

from collections.abc import Callable

from mach.io.arch_adapter import MAX_WIDTH, MoeArchAdapter
from mach.io.config_file import ConfigFields
from mach.io.inspection import CheckpointInspection, ExpertTensorNames
from mach.io.model_tensors import model_config
from mach.preflight.expert_bytes import ExpertSizes, widened
from mach.preflight.kv_cache_bytes import MAX_CONTEXT
from mach.preflight.memory_plan import MemoryNeeds, kv_bound

RUNTIME_BYTES = 100_000_000
"""Interpreter, MLX and libraries (measured on Linux with the CPU backend, `docs/preflight.md`)."""
LOADER_RESERVE_BYTES = 512 << 20
"""What the loader wants free besides weights and caches before it starts; more than it usually needs."""
TRANSIENT_BYTES = 25_000_000
"""A prefill past the bank leaves MLX so much in free buffers (measured)."""
PREFILL_CHUNK = 512
"""Prompt tokens per forward pass, where `prefill_chunk` has no reason for more."""
LONGEST_CHUNK = 2048
"""Twice as many tokens gain little beyond: experts are read rarely enough, and weights unpacked for many."""
LOADED_CONTEXT = 4096
"""Tokens that prompt and answer may have together where config.json does not say."""


def needs_from_headers(
    inspection: CheckpointInspection, sizes: ExpertSizes, backend: str, residency: str
) -> MemoryNeeds:
    """`memory_needs` with the experts' sizes as headers or a sidecar's layout have them.

    Raises:
        ConfigError: as `memory_needs`.
    """
    top_k = inspection.shape.top_k
    experts, least, scratch = sizes.total_slots, sizes.least_bank(top_k), sizes.scratch
    if residency == "bf16_streaming":
        experts = sizes.experts * sum(sizes.layer_floats.values())
        least, scratch = sizes.least_float_bank(top_k), sizes.float_scratch
    return memory_needs(
        inspection,
        backend,
        residency,
        experts=experts,
        least_bank=least,
        scratch=scratch,
        narrow=residency == "bf16_streaming" and sizes.narrow_floats,
    )


def memory_needs(
    inspection: CheckpointInspection,
    backend: str,
    residency: str,
    *,
    experts: int,
    least_bank: int,
    scratch: Callable[[int], int],
    narrow: bool = False,
) -> MemoryNeeds:
    """What a checkpoint takes in one residency (`streaming`, `stacked`, `bf16_streaming`, `unswapped`).

    Args:
        inspection: the checkpoint, with its headers read.
        backend: `cpu` where floats are widened to float32.
        residency: how the experts are held.
        experts: bytes of all experts in memory.
        least_bank: of one token's.
        scratch: experts → bytes of the arena of long prompts.
        narrow: whether the arena is where every pass computes, on widened copies.

    Raises:
        ConfigError: config.json lacks what the key-value estimate needs.
    """
    shape = inspection.shape
    streaming = residency in ("streaming", "bf16_streaming")
    others = other_weight_bytes(inspection, backend)
    if residency == "unswapped":
        others, experts = whole_bytes(inspection, backend), 0
    return MemoryNeeds(
        experts=experts,
        least_bank=least_bank if streaming else experts,
        streaming=streaming,
        scratch=scratch if streaming else None,
        least_scratch=shape.top_k if narrow else 1,
        most_scratch=shape.num_experts,
        always_scratch=narrow,
        other_weights=others,
        reserve=reserve_bytes(inspection, backend),
        kv=kv_of(inspection.adapter, inspection.config, inspection.text_config, backend),
        context=context_limit(inspection),
    )


def kv_of(
    adapter: MoeArchAdapter, config: ConfigFields, text: ConfigFields, backend: str
) -> Callable[[int], int]:
    """Tokens → bytes of keys and values, at most.

    Raises:
        ConfigError: config.json lacks what that needs.
    """
    bound = kv_bound(adapter, model_config(adapter.model_type, config, text), 4 if backend == "cpu" else 2)
    bound(1)
    return bound


def context_limit(inspection: CheckpointInspection) -> int:
    """Tokens that prompt and answer may have together, as the model says."""
    return inspection.text_config.integer(
        "max_position_embeddings", low=1, high=MAX_CONTEXT, default=LOADED_CONTEXT
    )


def reserve_bytes(inspection: CheckpointInspection, backend: str) -> int:
    """Kept free for all that is no weight and no cache: at least LOADER_RESERVE_BYTES.

    The interpreter and the libraries, and either what is there twice while loading or a prompt's activations.
    Attention scores are not among them: the engine's kernels do not write them down.
    """
    working = max(load_transient(inspection, backend), TRANSIENT_BYTES + row_bytes(inspection, backend))
    return max(LOADER_RESERVE_BYTES, RUNTIME_BYTES + working)


def other_weight_bytes(inspection: CheckpointInspection, backend: str) -> int:
    """Bytes in memory of all weights but routed experts'."""
    return widened(inspection.other_dtype_bytes, backend, ("BF16", "F16"))


def whole_bytes(inspection: CheckpointInspection, backend: str) -> int:
    """Bytes in memory of every tensor of the checkpoint."""
    sizes: dict[str, int] = {}
    for entry in inspection.tensors.values():
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.nbytes
    return widened(sizes, backend, ("BF16", "F16"))


def row_bytes(inspection: CheckpointInspection, backend: str, tokens: int = PREFILL_CHUNK) -> int:
    """Activations of `tokens` in a prefill without attention scores: the routed experts' rows dominate."""
    shape = inspection.shape
    rows = shape.top_k * (2 * shape.hidden_size + 3 * shape.expert_width) + 8 * shape.hidden_size
    return tokens * (4 if backend == "cpu" else 2) * rows


def prefill_chunk(inspection: CheckpointInspection, backend: str) -> int:
    """Prompt tokens per forward pass where native kernels compute all of it; follows from the model alone.

    The longer, the less often an expert is read or its weights are unpacked. So it is the longest of
    PREFILL_CHUNK, twice, … LONGEST_CHUNK whose activations the reserve holds without growing. Attention over
    compressed keys and values writes its scores down, which are not counted: it stays at PREFILL_CHUNK, as do
    GPUs, where longer ones were not tried.
    """
    tokens = PREFILL_CHUNK
    if backend != "cpu" or inspection.adapter.kv_cache_kind == "compressed":
        return tokens
    room = reserve_bytes(inspection, backend) - RUNTIME_BYTES - TRANSIENT_BYTES
    while tokens < LONGEST_CHUNK and row_bytes(inspection, backend, 2 * tokens) <= room:
        tokens *= 2
    return tokens


def activation_bytes(inspection: CheckpointInspection, backend: str, context: int) -> int:
    """Activations of one prefill chunk; on a CPU the larger of those with and without its kernels.

    Without them attention scores are among them, and the chunk is shorter.
    """
    tokens = min(context, PREFILL_CHUNK)
    # GPU kernels never write the scores down.
    heads = inspection.text_config.integer("num_attention_heads", low=1, high=MAX_WIDTH)
    scores = tokens * 4 * heads * context if backend == "cpu" else 0
    longer = row_bytes(inspection, backend, min(context, prefill_chunk(inspection, backend)))
    return max(longer, row_bytes(inspection, backend, tokens) + scores)


def load_transient(inspection: CheckpointInspection, backend: str) -> int:
    """While a float tensor is widened on a CPU, the original is there as well: the largest counts."""
    if backend != "cpu":
        return 0
    names = ExpertTensorNames(inspection.adapter)
    largest = 0
    for name, entry in inspection.tensors.items():
        if entry.dtype in ("BF16", "F16") and entry.nbytes > largest and names.place(name) is None:
            largest = entry.nbytes
    return largest
