"""Owns DeepSeek-V4's model: the layers in their order, in mlx-lm's conventions."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mach.io.deepseek_v4_config import DeepseekV4Config, LayerPlan
from mach_store.deepseek_v4.attention import Attention
from mach_store.deepseek_v4.cache import CompressedCache
from mach_store.deepseek_v4.hyper_connections import HyperConnection, HyperHead, expand
from mach_store.deepseek_v4.norm import Norm
from mach_store.deepseek_v4.rope import RotaryAngles
from mach_store.deepseek_v4.routing import ExpertsBlock
from mach_store.deepseek_v4.weight_names import bind_names
from mach_store.errors import StoreError
from mach_store.model_builder import compute_dtype


class DecoderLayer(nn.Module):
    """Attention and experts, each between two mixings of the residual streams."""

    def __init__(self, args: DeepseekV4Config, plan: LayerPlan) -> None:
        super().__init__()
        self.plan = plan
        self.self_attn = Attention(args, plan)
        self.mlp = ExpertsBlock(args, plan)
        self.input_layernorm = Norm(args.hidden_size, eps=args.norm_eps)
        self.post_attention_layernorm = Norm(args.hidden_size, eps=args.norm_eps)
        self.attn_hc = HyperConnection(args)
        self.ffn_hc = HyperConnection(args)

    def __call__(
        self, streams: mx.array, tokens: mx.array, cache: CompressedCache, angles: RotaryAngles
    ) -> mx.array:
        """Streams [n, hc_mult, hidden] and token ids [n] → streams."""
        x, post, mixing = self.attn_hc(streams)
        streams = expand(self.self_attn(self.input_layernorm(x), cache, angles), streams, post, mixing)
        x, post, mixing = self.ffn_hc(streams)
        return expand(self.mlp(self.post_attention_layernorm(x), tokens), streams, post, mixing)


class Body(nn.Module):
    """Everything up to the head."""

    def __init__(self, args: DeepseekV4Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [DecoderLayer(args, plan) for plan in args.layers]
        self.norm = Norm(args.hidden_size, eps=args.norm_eps)
        self.hc_head = HyperHead(args)
        self._streams = args.hc_mult
        self._plain = RotaryAngles(args.main_rope, args.rope_dim)
        self._compressed = RotaryAngles(args.compress_rope, args.rope_dim)

    def __call__(self, tokens: mx.array, cache: list[CompressedCache]) -> mx.array:
        """Token ids [n] → [n, hidden]."""
        embedded = self.embed_tokens(tokens)
        # Everything behind has this dtype, and a block-packed embedding unpacks to bfloat16 on any device.
        if embedded.dtype.size < compute_dtype().size:
            embedded = embedded.astype(compute_dtype())
        streams = mx.repeat(embedded[:, None], self._streams, axis=1)
        for layer, state in zip(self.layers, cache, strict=True):
            angles = self._compressed if layer.plan.ratio else self._plain
            streams = layer(streams, tokens, state, angles)
        out: mx.array = self.norm(self.hc_head(streams))
        return out


class Model(nn.Module):
    """DeepSeek-V4 for one sequence at a time.

    Attributes:
        args: what it was built from.
        unbound: (tensors, bytes) of multi-token prediction that `sanitize` left out, because nothing decodes
            with them yet; the checkpoint keeps them.
    """

    def __init__(self, args: DeepseekV4Config) -> None:
        """A model with random weights, none of them computed before it is used."""
        super().__init__()
        self.args = args
        self.model_type = "deepseek_v4"
        self.unbound = (0, 0)
        self.model = Body(args)
        if not args.tied:
            self.lm_head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)

    def __call__(self, inputs: mx.array, cache: list[CompressedCache] | None = None) -> mx.array:
        """Logits [1, n, vocabulary] after each of the tokens [1, n], which follow those in `cache`.

        Without a cache the tokens are a whole sequence.

        Raises:
            StoreError: more than one sequence.
        """
        if inputs.ndim != 2 or inputs.shape[0] != 1:
            raise StoreError(
                f"deepseek_v4: tokens of shape {list(inputs.shape)}: a compressed cache holds one sequence, "
                "so the shape must be [1, n]"
            )
        out = self.model(inputs[0], self.make_cache() if cache is None else cache)
        logits: mx.array = self.model.embed_tokens.as_linear(out) if self.args.tied else self.lm_head(out)
        return logits[None]

    @property
    def layers(self) -> list[Any]:
        """The decoder layers."""
        layers: list[Any] = self.model.layers
        return layers

    def make_cache(self) -> list[CompressedCache]:
        """One empty cache per layer."""
        window = self.args.sliding_window
        return [CompressedCache(window, bool(plan.ratio) + plan.indexed) for plan in self.args.layers]

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Weights under the model's own names; multi-token prediction is counted in `unbound`.

        Raises:
            StoreError: a tensor is packed in a way that mach-prune has to undo, stands there twice, or routes
                tokens to experts that do not exist.
        """
        bound, self.unbound = bind_names(weights, self.args)
        return bound
