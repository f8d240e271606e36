"""Owns the results of one pass through a layer's experts that is computed part by part, in any order."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mach_store.expert_block import ExpertBlock, ExpertTensors
from mach_store.expert_kernel import Packing, apply_sorted


class PassResults:
    """[tokens, k, hidden], filled by parts.

    Native kernels write each part into its place. Stock operations, which cannot, leave the parts to be put
    in order at the end.
    """

    def __init__(self, block: ExpertBlock, packing: Packing, x: mx.array, k: int) -> None:
        """Args: x: [tokens, hidden]; k: experts per token."""
        self._block, self._packing, self._x, self._k = block, packing, x, k
        self._filled: mx.array | None = None
        self._parts: list[mx.array] = []
        self._order: list[NDArray[np.int64]] = []

    def compute(self, tensors: ExpertTensors, routes: NDArray[np.int64], slots: NDArray[np.uint32]) -> None:
        """Compute some of the results; they have been evaluated on return.

        Args:
            tensors: what to compute with; they may be overwritten afterwards.
            routes: [r] which of the tokens × k results these are, distinct, each in one part.
            slots: [r] where the expert of each of them lies in `tensors`.
        """
        product = self._block.native_product(tensors, self._packing)
        if product is None:
            self._compute_stock(tensors, routes, slots)
            return
        if self._filled is None:
            width = tensors["down_proj"]["weight"].shape[1]
            self._filled = mx.zeros((self._x.shape[0] * self._k, width))
        # Bound to the same name at once: the product may then write into the memory instead of copying it.
        self._filled = product.fill(
            self._filled, self._x, mx.array(routes.astype(np.uint32)), mx.array(slots)
        )
        mx.eval(self._filled)

    def _compute_stock(
        self, tensors: ExpertTensors, routes: NDArray[np.int64], slots: NDArray[np.uint32]
    ) -> None:
        by_slot = np.argsort(slots, kind="stable")
        routes, slots = routes[by_slot], slots[by_slot]
        rows = self._x[mx.array((routes // self._k).astype(np.uint32))]
        y = apply_sorted(
            tensors, self._packing, self._block.activation, rows, mx.array(slots), self._x.shape[0] * self._k
        )
        mx.eval(y)
        self._parts.append(y)
        self._order.append(routes)

    def take(self) -> mx.array:
        """[tokens, k, hidden], every part of which has been computed; evaluated."""
        y = self._filled
        if y is None:
            inverse = np.argsort(np.concatenate(self._order), kind="stable").astype(np.uint32)
            y = mx.concatenate(self._parts)[mx.array(inverse)]
        y = y.reshape(-1, self._k, y.shape[-1])
        mx.eval(y)
        return y
