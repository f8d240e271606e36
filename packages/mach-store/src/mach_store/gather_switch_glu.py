"""Owns the production dispatch of a layer's routed experts, in place of mlx-lm's SwitchGLU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mach_store.bank_cache import BankCache
from mach_store.cpu_kernels import CpuKernels, stock_kernels
from mach_store.errors import DispatchCancelledError, StoreError
from mach_store.expert_block import ExpertBlock
from mach_store.expert_kernel import Activation
from mach_store.layer_bank import LayerExpertBank
from mach_store.resident_cache import ResidentStackedExpertCache
from mach_store.transient_prefill import dispatch_transient


class GatherSwitchGLU(nn.Module):
    """Routed experts out of a store, all routes of a pass in three gathered products.

    It has no parameters of its own: strict weight loading and dtype changes pass it by.
    """

    def __init__(
        self,
        store: BankCache | ResidentStackedExpertCache,
        layer: int,
        activation: Activation,
        *,
        transient_min_tokens: int = 32,
        kernels: CpuKernels | None = None,
        in_graph: bool = True,
    ) -> None:
        """A dispatch for one layer.

        Args:
            store: holds the experts.
            layer: model layer index.
            activation: combines the up and gate products; the family's own module.
            transient_min_tokens: passes of at least this many tokens go through the scratch arena.
            kernels: what to compute with; stock MLX operations if not given.
            in_graph: let passes find and read their experts by themselves, where that is possible.
        """
        super().__init__()
        self._store, self._layer = store, store.layers[layer]
        self._dispatch = None
        self._block = ExpertBlock(activation, kernels or stock_kernels("not asked for"))
        self._block.prepare(self._layer.components, self._layer.packing)
        if self._block.reason and self._layer.for_kernels:
            raise StoreError(
                f"layer {layer}: its experts are held for native kernels, which do not compute them "
                f"({self._block.reason}): set LME_CPU_KERNELS=0"
            )
        # Kernels compute a long pass layer by layer: so it can be withdrawn, and nothing is lost.
        self._pausing = transient_min_tokens if not self._block.reason else None
        if isinstance(store, BankCache):
            self._dispatch = _StreamedDispatch(
                store, store.layers[layer], self._block, transient_min_tokens, in_graph
            )

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """The chosen experts' outputs.

        Args:
            x: [..., hidden].
            indices: [..., k] expert ids in 0 … num_experts − 1.

        Returns:
            [..., k, hidden].

        Raises:
            SidecarCorruptionError, ExpertReadError: an expert could not be read.
            DispatchCancelledError: the request was withdrawn.
            StoreError: the router chose an expert that does not exist.
        """
        layer = self._layer
        if self._pausing is not None and indices.size >= self._pausing * indices.shape[-1]:
            mx.eval(x, indices)
        if self._dispatch is not None and self._dispatch.in_graph:
            return self._dispatch(x, indices)
        everywhere = layer.device_slots
        if everywhere is None:
            assert self._dispatch is not None, "only a streaming store has experts on disk"
            return self._dispatch(x, indices)
        if self._store.cancelled():
            raise DispatchCancelledError("the request was cancelled during a forward pass")
        if layer.observed:
            assert isinstance(self._store, ResidentStackedExpertCache), "a bank sees them at its fence"
            self._store.routed(layer.layer, indices)
        layer.counters.hits += min(indices.size, layer.num_experts)
        return self._block(layer.components, layer.packing, x, everywhere[indices])

    @property
    def kernels_reason(self) -> str:
        """Why native kernels do not compute this layer; empty when they do."""
        return self._block.reason

    def stats(self) -> dict[str, Any]:
        """This layer's counters."""
        dispatch = {"dispatch": "gather"} if self._dispatch is None else self._dispatch.as_dict()
        return {**dispatch, **self._block.as_dict(), **self._layer.counters.as_dict()}

    @property
    def in_graph(self) -> bool:
        """Whether passes find and read their experts by themselves."""
        return self._dispatch is not None and self._dispatch.in_graph

    def foretell(self, scores_of: Callable[[mx.array], mx.array] | None) -> None:
        """What passes guess the next layer's experts by; None is by what has followed this layer's.

        Args:
            scores_of: x [..., hidden], as given to this layer → [..., experts] float32, highest for the
                likeliest choice.
        """
        if self._dispatch is not None:
            self._dispatch.scores_of = scores_of


class _StreamedDispatch:
    """The dispatch while some experts are on disk.

    Passes that fit go into the graph whole, if native kernels compute; otherwise, and for long ones, the
    host sees the routed ids at every layer.
    """

    def __init__(
        self,
        cache: BankCache,
        bank: LayerExpertBank,
        block: ExpertBlock,
        transient_min_tokens: int,
        in_graph: bool,
    ) -> None:
        self._cache, self._bank, self._block = cache, bank, block
        self._transient_min_tokens = transient_min_tokens
        self.scores_of: Callable[[mx.array], mx.array] | None = None
        product = block.native_product(bank.components, bank.packing)
        self._streamed = None
        if not in_graph:
            self._reason = "switched off by LME_IN_GRAPH_DISPATCH=0"
        elif product is None:
            self._reason = f"stock operations compute: {block.reason}"
        else:
            streamed = cache.in_graph(bank.layer, product)
            if isinstance(streamed, str):
                self._reason = streamed
            else:
                self._streamed, self._reason = streamed, ""
        bank.dispatch = self.as_dict()

    @property
    def in_graph(self) -> bool:
        return self._streamed is not None

    def as_dict(self) -> dict[str, str]:
        """For reports: which dispatch, and why not the one in the graph."""
        if self.in_graph:
            return {"dispatch": "in-graph"}
        return {"dispatch": "gather", "dispatch_reason": self._reason}

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        if self._streamed is not None and self._fits(indices):
            self._cache.begin_pass(self._bank.layer)
            if self.scores_of is None or not self._cache.prefetch_slots:
                return self._streamed(x, indices)
            return self._streamed(x, indices, self.scores_of(x))
        return self._fenced(x, indices)

    def _fits(self, indices: mx.array) -> bool:
        """Whether a pass is certain to need no more experts than it may take, or finds all of them."""
        bank = self._bank
        if bank.resident_to_stay:
            return True
        tokens = indices.size // indices.shape[-1]
        most = min(indices.size, bank.num_experts)
        return tokens < self._transient_min_tokens and most <= self._room()

    def _fenced(self, x: mx.array, indices: mx.array) -> mx.array:
        cache, bank = self._cache, self._bank
        ids = cache.fence(indices)
        distinct = sorted(set(ids))
        if not (0 <= distinct[0] and distinct[-1] < bank.num_experts):
            raise StoreError(bank.unknown_expert(distinct))
        k = indices.shape[-1]
        cache.routed(bank.layer, ids, k)
        if len(ids) >= self._transient_min_tokens * k or len(distinct) > self._room():
            y = dispatch_transient(
                cache, bank, self._block, x.reshape(-1, x.shape[-1]), np.array(ids).reshape(-1, k)
            )
            return y.reshape(*indices.shape, -1)
        components, slot_of = cache.computable(bank, bank.acquire(distinct))
        slots = mx.array([slot_of[expert] for expert in ids], mx.uint32).reshape(indices.shape)
        y = self._block(components, bank.packing, x, slots)
        cache.hold(y)
        return y

    def _room(self) -> int:
        """Experts that one pass may pin: a layer never takes more than the others leave it."""
        room = max(self._cache.top_k, self._bank.pool.share)
        return min(room, self._cache.scratch_experts) if self._bank.pool.narrow else room
