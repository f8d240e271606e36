"""Owns what is true of this server from its start to its end: model, residency, reader, memory, fingerprint.

Start-up lines, `/v1/capabilities`, `/v1/stats` and `/v1/models` all say what stands here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mach.errors import CheckpointError
from mach.io.arch_registry import arch_summary
from mach.io.sidecar_layout import check_files, read_layout
from mach.preflight.memory_plan import RESERVE
from mach_decode.engine import UNSWAPPED, Engine
from mach_store.bank_cache import BankCache
from mach_store.checkpoint_fingerprint import checkpoint_fingerprint
from mach_store.direct_choice import DirectChoice
from mach_store.scatter_reader import NATIVE_MODULE

DECODE_PATH = "target-only"
EFFECTIVE_DECODE_PATH = "target_only"
ADAPTIVE_BLOCK_POLICY = "none"
ADAPTIVE_BLOCK_SETTINGS = ("alpha_window", "alpha_threshold", "low_block", "default_block")
"""What a policy of blocks would be set by; the policy `none` has no value for any."""

OPENAI_SERVING_MODE = "openai-mlx-stream-generate"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingFacts:
    """What was loaded and how it is served.

    Attributes:
        model: the id in `/v1/models`.
        names: every name that a request may call the model by.
        fingerprint: `system_fingerprint`: equal for equal checkpoint and engine versions.
        arch: `arch_summary` of the architecture; None for one that is not registered (`openai` alone).
        backend: `production`, or `openai` for mlx-lm's own model.
        residency: `streaming`, `stacked`, `bf16_streaming`, or `unswapped` with the `openai` backend.
        dispatch: `in-graph`, `gather` or `disk`; `mlx-lm` with the `openai` backend.
        dispatch_reason: why experts are not found within the graph; None where they are, and without a bank.
        prefetch_refusal: why no expert is read before it is needed; None where that is done.
        cpu_kernels: what computes the products, see `mach_store.model_kernels`.
        reader: `native`, `diagnostic-python`, or `none` when nothing is streamed.
        reader_reason: why the reader is not the native one; empty when it is, or when there is none.
        native_extension: whether `lme_mlx_pread_ext` can be imported.
        fallback_policy: `LME_FALLBACK_POLICY`.
        direct: whether experts are read past the page cache, and why.
        sidecar_present: whether the checkpoint has an expert sidecar.
        sidecar_valid: whether its layout.json is well-formed and its files have the sizes it declares;
            records are checked against their checksums when they are read.
        transient_prefill: whether prompts go through the scratch arena where the bank is not whole.
        resident_metal: whether every expert stays in Metal memory.
        context_length: tokens that the model takes, prompt and answer together.
        kv_tokens: tokens whose keys and values there is memory for; a request may have as many.
        kv_budget_bytes: that memory; 0 where the size of keys and values is not known.
        reserve_bytes: memory planned for everything that is no weight and no cache.
        limit_bytes: what everything may take together; None where that is not known.
        limit_source: where that comes from: `memory-gb`, or what the machine says.
        wired_bytes: Metal's wired limit; None where there is no Metal.
        eviction_policy: which expert leaves a full bank; `none` when nothing is streamed.
        bank_bytes: memory allocated for experts.
        scratch_bytes: memory of the scratch arena, once a prompt has used it.
        other_weight_bytes: memory of all other weights.
        target_only_asked: whether `--target-only` was given.
    """

    model: str
    names: frozenset[str]
    fingerprint: str
    arch: dict[str, Any] | None
    backend: str
    residency: str
    dispatch: str
    dispatch_reason: str | None
    prefetch_refusal: str | None
    cpu_kernels: dict[str, Any]
    reader: str
    reader_reason: str
    native_extension: bool
    fallback_policy: str
    direct: DirectChoice
    verify_reads: bool
    read_threads: int
    sidecar_present: bool
    sidecar_valid: bool
    transient_prefill: bool
    resident_metal: bool
    context_length: int
    kv_tokens: int
    kv_budget_bytes: int
    reserve_bytes: int
    limit_bytes: int | None
    limit_source: str
    wired_bytes: int | None
    eviction_policy: str
    bank_bytes: int
    scratch_bytes: int
    other_weight_bytes: int
    target_only_asked: bool

    @property
    def streaming(self) -> bool:
        """Whether experts come from disk."""
        return self.residency in ("streaming", "bf16_streaming")

    @property
    def serving_mode(self) -> str:
        """`streaming` or `stacked` after the flag, or what the `openai` backend is called."""
        if self.backend == "openai":
            return OPENAI_SERVING_MODE
        return "streaming" if self.streaming else self.residency

    @property
    def verified(self) -> bool:
        """Whether every record is compared with its checksum as it is read: only a sidecar has any."""
        return self.residency == "streaming" and self.sidecar_present and self.verify_reads


def facts_of(engine: Engine, checkpoint: str, *, target_only: bool) -> ServingFacts:
    """The facts of a loaded engine; called in its thread.

    Args:
        engine: just loaded.
        checkpoint: as the user named it.
        target_only: whether `--target-only` was given.
    """
    loaded, store = engine.loaded, engine.store
    reader = loaded.reader
    streaming = isinstance(store, BankCache)
    sidecar = loaded.sidecar_directory
    return ServingFacts(
        model=loaded.name,
        names=frozenset({loaded.name, checkpoint}),
        fingerprint=_fingerprint(loaded.directory),
        arch=None if loaded.adapter is None else arch_summary(loaded.adapter),
        backend="openai" if store.residency == UNSWAPPED else "production",
        residency=store.residency,
        dispatch=loaded.dispatch,
        dispatch_reason=store.dispatch_reason if isinstance(store, BankCache) else None,
        prefetch_refusal=store.prefetch_refusal if isinstance(store, BankCache) else "nothing is streamed",
        cpu_kernels=loaded.kernels,
        reader="none" if reader is None else "native" if reader.native else "diagnostic-python",
        reader_reason="" if reader is None else reader.reason,
        native_extension=_native_extension() if reader is None else reader.native,
        fallback_policy=loaded.settings.fallback_policy,
        direct=loaded.direct,
        verify_reads=loaded.settings.verify_reads,
        read_threads=0 if reader is None else reader.threads,
        sidecar_present=sidecar is not None,
        sidecar_valid=sidecar is not None and _valid(sidecar),
        transient_prefill=streaming and loaded.dispatch != "disk",
        resident_metal=store.residency == "stacked" and _on_metal(),
        context_length=engine.context_length,
        kv_tokens=engine.kv_budget.tokens,
        kv_budget_bytes=engine.kv_budget.nbytes,
        reserve_bytes=loaded.plan.parts[RESERVE],
        limit_bytes=loaded.plan.limit,
        limit_source=loaded.plan.limit_source.removeprefix("--").replace(" ", "-"),
        wired_bytes=loaded.wired_bytes,
        eviction_policy=store.policy if isinstance(store, BankCache) else "none",
        bank_bytes=store.nbytes,
        scratch_bytes=store.scratch_bytes
        if isinstance(store, BankCache) and loaded.dispatch != "disk"
        else 0,
        other_weight_bytes=sum(array.nbytes for _, array in tree_flatten(engine.model.parameters())),
        target_only_asked=target_only,
    )


def _valid(sidecar: str) -> bool:
    try:
        check_files(read_layout(sidecar), sidecar)
    except (CheckpointError, OSError):
        return False
    return True


def _on_metal() -> bool:
    return mx.metal.is_available() and mx.default_device() == mx.gpu


def _native_extension() -> bool:
    try:
        import_module(NATIVE_MODULE)
    except ImportError:
        return False
    return True


def _fingerprint(directory: Path) -> str:
    """A digest of engine versions and checkpoint."""
    digest = hashlib.sha256()
    for distribution in ("mach-decode", "mach-store", "mlx", "mlx-lm"):
        digest.update(f"{distribution}=={version(distribution)}\n".encode())
    digest.update(checkpoint_fingerprint(directory).encode())
    return f"fp_{digest.hexdigest()[:12]}"
