"""Owns stacked residency: every expert in memory, loaded once from an axis-0 stacked checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from mach.io.inspection import CheckpointInspection
from mach_store.bank_form import kernels_take_schema
from mach_store.counters import LayerCounters
from mach_store.cpu_kernels import CpuKernels
from mach_store.expert_arrays import DTYPES, packing_of, widens
from mach_store.expert_block import ExpertTensors
from mach_store.expert_kernel import Packing
from mach_store.expert_map import LayerExperts
from mach_store.load_progress import LoadListener, unheard
from mach_store.routed_pass import RoutedPass
from mach_store.stacked_source import stacked_schemas


class ResidentLayer:
    """One layer's experts, all in memory; expert ids are slots.

    Attributes: as `LayerExpertBank`'s, and
        slot_bytes: memory of one expert.
    """

    def __init__(
        self,
        layer: int,
        num_experts: int,
        components: ExpertTensors,
        packing: Packing,
        *,
        for_kernels: bool = False,
    ) -> None:
        """A view of arrays that somebody else loaded."""
        self.for_kernels = for_kernels
        self.layer, self.num_experts, self.components, self.packing = layer, num_experts, components, packing
        self.counters = LayerCounters()
        self.observed = False
        arrays = [array for parts in components.values() for array in parts.values()]
        self.slot_bytes = sum(array.nbytes for array in arrays) // num_experts
        self.device_slots: mx.array | None = mx.arange(num_experts, dtype=mx.uint32)
        mx.eval(self.device_slots)


class ResidentStackedExpertCache:
    """The expert store of `--no-streaming`.

    Attributes:
        layers: model index → its experts.
        schemas: model index → one expert's tensors as stored.
        cancelled: asked in every layer, as `BankCache`'s.
        residency: `"stacked"`, for reports.
        host_free, decodes_ahead: a forward pass never waits for the host.
    """

    residency = "stacked"
    host_free = True
    decodes_ahead = True

    def __init__(
        self,
        inspection: CheckpointInspection,
        compute: mx.Dtype,
        kernels: CpuKernels | None = None,
        listener: LoadListener = unheard,
    ) -> None:
        """Load every expert, layer by layer, in the dtype that what computes wants.

        Args:
            inspection: of a checkpoint with the stacked layout (the caller has asked the gate).
            compute: dtype of the activations.
            kernels: what computes; stock operations if not given.
            listener: is told how many bytes, as stored, have been read.
        """
        self.cancelled: Callable[[], bool] = _never
        self._routed: list[tuple[int, mx.array]] = []
        self.schemas, self.num_experts = stacked_schemas(inspection)
        self.layers: dict[int, ResidentLayer] = {}
        files: dict[str, dict[str, mx.array]] = {}
        names = {(entry.file, entry.start): name for name, entry in inspection.tensors.items()}
        self.nbytes = read = 0
        for layer, schema in self.schemas.items():
            components: dict[str, dict[str, mx.array]] = {}
            as_stored = kernels_take_schema(schema, kernels)
            for segment in schema.segments:
                entry = inspection.stacked[layer][segment.projection][segment.component]
                if entry.file not in files:
                    files[entry.file] = _load(entry.file)
                # Popped, so that what is widened does not stay in memory twice.
                array = files[entry.file].pop(names[entry.file, entry.start])
                wide = not as_stored and widens(segment.dtype, compute)
                components.setdefault(segment.projection, {})[segment.component] = array.astype(
                    mx.float32 if wide else DTYPES[segment.dtype]
                )
            arrays = [array for group in components.values() for array in group.values()]
            mx.eval(arrays)
            self.nbytes += sum(array.nbytes for array in arrays)
            read += self.num_experts * schema.nbytes
            listener("experts", read, inspection.expert_bytes)
            self.layers[layer] = ResidentLayer(
                layer,
                self.num_experts,
                ExpertTensors(components),
                packing_of(schema),
                for_kernels=as_stored,
            )

    def totals(self) -> LayerCounters:
        """The counters of all layers, added up."""
        total = LayerCounters()
        for layer in self.layers.values():
            total.add(layer.counters)
        return total

    def stats(self) -> dict[str, Any]:
        """What `/v1/cache/stats` reports as `streaming_summary`; nothing is streamed here."""
        experts = self.num_experts * len(self.layers)
        return {
            "residency": self.residency,
            "bank_bytes": self.nbytes,
            "bank_slots": experts,
            "experts_total": experts,
            "experts_resident": experts,
            **self.totals().as_dict(),
        }

    def expert_map(self) -> dict[int, LayerExperts]:
        """Model index → that layer's experts: all in memory, their uses unseen."""
        return {layer: LayerExperts(b"\1" * self.num_experts, None) for layer in sorted(self.layers)}

    def observe_routes(self, on: bool) -> None:
        """Whether routes are kept for `drain_routes`; passes go on without waiting for the host."""
        self._routed = []
        for layer in self.layers.values():
            layer.observed = on

    def routed(self, layer: int, indices: mx.array) -> None:
        """A layer's routes are part of a graph. Args: indices: [..., k] expert ids, not evaluated."""
        self._routed.append((layer, indices))

    def drain_routes(self) -> list[RoutedPass]:
        """As `BankCache.drain_routes`; a pass that is queued is waited for."""
        routed, self._routed = self._routed, []
        mx.eval([indices for _, indices in routed])
        return [
            RoutedPass(layer, np.array(indices).reshape(-1, indices.shape[-1]).astype(np.uint16))
            for layer, indices in routed
        ]

    def sync(self) -> None:
        """Nothing runs behind the host's back: for symmetry with `BankCache`."""

    def quiesce(self) -> None:
        """As `sync`."""

    def begin_decoding(self) -> None:
        """Nothing is given back: for symmetry with `BankCache`."""

    def abandon(self) -> None:
        """Nothing is pinned: for symmetry with `BankCache`."""

    def close(self) -> None:
        """Nothing is open: for symmetry with `BankCache`."""


def _load(path: str) -> dict[str, mx.array]:
    tensors = mx.load(path)
    assert isinstance(tensors, dict), "a .safetensors file loads as a dictionary"
    return tensors


def _never() -> bool:
    return False
