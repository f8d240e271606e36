"""Owns the making of key-value caches for a model; what is in them belongs to mlx-lm."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache


class KVCacheFactory:
    """Makes one request's key-value cache, and says what it holds."""

    def __init__(self, model: nn.Module) -> None:
        """Caches for `model`, of the kinds that its family wants."""
        self._model = model

    def make(self) -> list[Any]:
        """A fresh, empty cache: one mlx-lm cache object per layer."""
        caches: list[Any] = make_prompt_cache(self._model)
        return caches

    @staticmethod
    def evaluate(caches: list[Any]) -> None:
        """Finish every pending computation of the cache, so that the graph behind it is freed."""
        mx.eval([cache.state for cache in caches])
