"""The model equals a slow one, written down token by token in float64, and itself however a prompt is cut.

transformers' own logits are compared in tests/, from stored files; this reference reaches every variant.
"""

import math

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map_with_path

from mach_store.deepseek_v4 import Model, ModelArgs
from mach_store.errors import StoreError

# Float64 against float32: what is left is rounding.
TOLERANCE = 2e-5


def random_model(config, seed=0) -> Model:
    """A model none of whose parameters is a neutral default."""
    model = Model(ModelArgs.from_dict(config))
    random = np.random.default_rng(seed)

    def value(path: str, old: mx.array) -> mx.array:
        if path.endswith("tid2eid"):
            table = [random.permutation(model.args.experts)[: old.shape[1]] for _ in range(old.shape[0])]
            return mx.array(np.array(table), mx.int32)
        draws = random.standard_normal(old.shape)
        if "norm" in path or path.endswith("scale"):
            draws = 1 + 0.1 * draws
        elif path.endswith("weight"):
            draws = draws * (1.5 / math.sqrt(old.shape[-1]) if "embed" not in path else 1.0)
        elif path.endswith("fn"):
            draws = draws / math.sqrt(old.shape[-1])
        else:
            draws = 0.5 * draws
        return mx.array(draws.astype(np.float32))

    model.update(tree_map_with_path(value, model.parameters()))
    mx.eval(model.parameters())
    return model


def tokens_of(config, count, seed=5) -> list[int]:
    return np.random.default_rng(seed).integers(0, config["vocab_size"], count).tolist()


def logits_in_pieces(model, tokens, sizes) -> np.ndarray:
    """Logits of all tokens, `sizes` of them per pass; the last size repeats."""
    cache, parts, start, sizes = model.make_cache(), [], 0, list(sizes)
    while start < len(tokens):
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        parts.append(model(mx.array([tokens[start : start + size]]), cache=cache)[0])
        mx.eval(parts[-1], [layer.state for layer in cache])
        start += size
    return np.array(mx.concatenate(parts))


class Reference:
    """DeepSeek-V4 for one whole sequence, nothing cached, nothing batched."""

    def __init__(self, model: Model) -> None:
        self.args = model.args
        self.weights = {
            name: np.array(value, np.int64 if name.endswith("tid2eid") else np.float64)
            for name, value in tree_flatten(model.parameters())
        }
        self.smallest_gap = math.inf
        """Least distance between an entry that an indexer took and one that it left."""

    def logits(self, tokens) -> np.ndarray:
        weights, args = self.weights, self.args
        streams = [np.stack([weights["model.embed_tokens.weight"][t]] * args.hc_mult) for t in tokens]
        for index, plan in enumerate(args.layers):
            block = f"model.layers.{index}."
            mixed = [self.mix(block + "attn_hc.", s) for s in streams]
            x = [self.norm(m[0], block + "input_layernorm.weight") for m in mixed]
            out = self.attention(block + "self_attn.", plan, x)
            streams = [np.outer(m[1], o) + m[2].T @ s for m, o, s in zip(mixed, out, streams, strict=True)]
            mixed = [self.mix(block + "ffn_hc.", s) for s in streams]
            x = [self.norm(m[0], block + "post_attention_layernorm.weight") for m in mixed]
            out = [self.experts(block + "mlp.", plan, v, t) for v, t in zip(x, tokens, strict=True)]
            streams = [np.outer(m[1], o) + m[2].T @ s for m, o, s in zip(mixed, out, streams, strict=True)]
        rows = []
        for s in streams:
            mapped = self.unit(s.reshape(-1)) @ weights["model.hc_head.hc_fn"].T
            pre = sigmoid(mapped * weights["model.hc_head.hc_scale"] + weights["model.hc_head.hc_base"])
            x = self.norm((pre + args.hc_eps) @ s, "model.norm.weight")
            head = "model.embed_tokens.weight" if args.tied else "lm_head.weight"
            rows.append(weights[head] @ x)
        return np.stack(rows)

    def unit(self, x) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.args.norm_eps)

    def norm(self, x, name) -> np.ndarray:
        return self.unit(x) * self.weights[name]

    def mix(self, block, streams):
        args, h = self.args, self.args.hc_mult
        mapped = self.weights[block + "fn"] @ self.unit(streams.reshape(-1))
        base, scale = self.weights[block + "base"], self.weights[block + "scale"]
        pre = sigmoid(mapped[:h] * scale[0] + base[:h]) + args.hc_eps
        post = 2 * sigmoid(mapped[h : 2 * h] * scale[1] + base[h : 2 * h])
        comb = softmax((mapped[2 * h :] * scale[2] + base[2 * h :]).reshape(h, h)) + args.hc_eps
        comb = comb / (comb.sum(0, keepdims=True) + args.hc_eps)
        for _ in range(args.hc_iterations - 1):
            comb = comb / (comb.sum(1, keepdims=True) + args.hc_eps)
            comb = comb / (comb.sum(0, keepdims=True) + args.hc_eps)
        return pre @ streams, post, comb

    def rope(self, x, position, compressed, back=False) -> np.ndarray:
        rope = self.args.compress_rope if compressed else self.args.main_rope
        dim, x = self.args.rope_dim, x.copy()
        first = x.shape[-1] - dim
        for pair in range(dim // 2):
            frequency = rope.theta ** (-2 * pair / dim)
            if rope.factor != 1:
                edges = [
                    dim * math.log(rope.original_context / (turns * 2 * math.pi)) / 2 / math.log(rope.theta)
                    for turns in (rope.beta_fast, rope.beta_slow)
                ]
                low, high = max(math.floor(edges[0]), 0), min(math.ceil(edges[1]), dim - 1)
                part = min(max((pair - low) / (high - low or 0.001), 0), 1)
                frequency = frequency / rope.factor * part + frequency * (1 - part)
            angle = -position * frequency if back else position * frequency
            a, b = x[..., first + 2 * pair].copy(), x[..., first + 2 * pair + 1].copy()
            x[..., first + 2 * pair] = rope.amplitude * (a * math.cos(angle) - b * math.sin(angle))
            x[..., first + 2 * pair + 1] = rope.amplitude * (a * math.sin(angle) + b * math.cos(angle))
        return x

    def entries(self, block, plan, x, dim) -> list[np.ndarray]:
        """One entry per whole group of tokens."""
        weights, made = self.weights, []
        for first in range(0, len(x) - plan.ratio + 1, plan.ratio):
            values, gates = [], []
            for offset in range(plan.ratio):
                own, earlier = first + offset, first + offset - plan.ratio
                bias = weights[block + "position_bias"][offset]
                series = slice(dim, None) if plan.indexed else slice(None)
                values.append((weights[block + "kv_proj.weight"] @ x[own])[series])
                gates.append((weights[block + "gate_proj.weight"] @ x[own] + bias)[series])
                if plan.indexed and earlier >= 0:
                    values.append((weights[block + "kv_proj.weight"] @ x[earlier])[:dim])
                    gates.append((weights[block + "gate_proj.weight"] @ x[earlier] + bias)[:dim])
            gate = np.exp(np.stack(gates) - np.max(gates, axis=0))
            pooled = (np.stack(values) * gate / gate.sum(0)).sum(0)
            made.append(self.rope(self.norm(pooled, block + "kv_norm.weight"), first, True))
        return made

    def attention(self, block, plan, x) -> list[np.ndarray]:
        args, weights, compressed = self.args, self.weights, bool(plan.ratio)
        residuals = [self.norm(weights[block + "q_a_proj.weight"] @ v, block + "q_a_norm.weight") for v in x]
        keys = [self.norm(weights[block + "kv_proj.weight"] @ v, block + "kv_norm.weight") for v in x]
        keys = [self.rope(k, t, compressed) for t, k in enumerate(keys)]
        entries = self.entries(block + "compressor.", plan, x, args.head_dim) if compressed else []
        indexer = block + "compressor.indexer."
        index_keys = self.entries(indexer, plan, x, args.index_head_dim) if plan.indexed else []
        out = []
        for t, residual in enumerate(residuals):
            q = (weights[block + "q_b_proj.weight"] @ residual).reshape(args.num_heads, args.head_dim)
            q = self.rope(self.unit(q), t, compressed)
            closed = (t + 1) // plan.ratio if compressed else 0
            chosen = list(range(closed))
            if plan.indexed and closed > args.index_topk:
                chosen = self.choose(indexer, x[t], residual, t, index_keys[:closed])
            seen = np.stack(keys[max(0, t - args.sliding_window + 1) : t + 1] + [entries[e] for e in chosen])
            scores = q @ seen.T / math.sqrt(args.head_dim)
            sinks = weights[block + "sinks"][:, None]
            attended = softmax(np.concatenate([scores, sinks], 1))[:, :-1] @ seen
            groups = self.rope(attended, t, compressed, back=True).reshape(args.o_groups, -1)
            rows = weights[block + "o_a_proj.weight"].reshape(args.o_groups, args.o_lora_rank, -1)
            low = np.concatenate([r @ g for r, g in zip(rows, groups, strict=True)])
            out.append(weights[block + "o_b_proj.weight"] @ low)
        return out

    def choose(self, block, x, residual, position, keys) -> list[int]:
        args = self.args
        q = self.weights[block + "q_b_proj.weight"] @ residual
        q = self.rope(q.reshape(args.index_heads, args.index_head_dim), position, True)
        heads = self.weights[block + "scorer.weights_proj.weight"] @ x / math.sqrt(args.index_heads)
        scores = [heads @ np.maximum(q @ k, 0) / math.sqrt(args.index_head_dim) for k in keys]
        order = sorted(range(len(keys)), key=lambda e: (-scores[e], e))
        taken, left = order[: args.index_topk], order[args.index_topk :]
        self.smallest_gap = min(self.smallest_gap, scores[taken[-1]] - scores[left[0]])
        return sorted(taken)

    def experts(self, block, plan, x, token) -> np.ndarray:
        args, weights = self.args, self.weights
        logits = weights[block + "gate.weight"] @ x
        scores = np.sqrt(np.log1p(np.exp(logits))) if args.scoring == "sqrtsoftplus" else sigmoid(logits)
        if plan.hashed:
            chosen = weights[block + "gate.tid2eid"][token]
        else:
            chosen = np.argsort(-(scores + weights[block + "gate.e_score_correction_bias"]))[: args.top_k]
        share = scores[chosen] / (scores[chosen].sum() + 1e-20) * args.routed_scaling
        routed = block + "switch_mlp.{}_proj.weight"
        out = self.feed_forward(x, *(weights[block + f"shared_experts.{p}_proj.weight"] for p in PROJECTIONS))
        for expert, part in zip(chosen, share, strict=True):
            own = (weights[routed.format(p)][expert] for p in PROJECTIONS)
            out = out + part * self.feed_forward(x, *own)
        return out

    def feed_forward(self, x, gate, up, down) -> np.ndarray:
        limit = self.args.swiglu_limit
        g, u = np.minimum(gate @ x, limit), np.clip(up @ x, -limit, limit)
        return down @ (g * sigmoid(g) * u)


PROJECTIONS = ("gate", "up", "down")


def sigmoid(x) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


SPARSE, HEAVY = "compressed_sparse_attention", "heavily_compressed_attention"
VARIANTS = {
    "as published": ({}, 140),
    "small rates, tight clamp": (
        {"compress_rates": {SPARSE: 4, HEAVY: 8}, "swiglu_limit": 0.5, "index_topk": 5},
        70,
    ),
    "odd rates, window of one, one entry": (
        {"compress_rate_csa": 3, "compress_rate_hca": 5, "sliding_window": 1, "index_topk": 1},
        50,
    ),
    "a window wider than the prompt, plain rope": ({"sliding_window": 512, "rope_scaling": None}, 40),
    "all hash-routed, sigmoid, two streams": (
        {"num_hash_layers": 4, "scoring_func": "sigmoid", "hc_mult": 2, "hc_sinkhorn_iters": 3},
        40,
    ),
    "no hash routing, all heads in one group each, whole heads rotated, tied": (
        {"num_hash_layers": 0, "o_groups": 4, "qk_rope_head_dim": 16, "head_dim": 16, "hc_mult": 1,
         "tie_word_embeddings": True},
        40,
    ),  # fmt: skip
    "transformers' spelling": (
        {"compress_ratios": None, "layer_types": [HEAVY, SPARSE, "sliding_attention", SPARSE],
         "num_hash_layers": None, "mlp_layer_types": ["moe", "hash_moe", "moe", "hash_moe"],
         "compress_rates": {SPARSE: 4, HEAVY: 16}, "rope_scaling": None, "rope_parameters": {
            "main": {"rope_type": "default", "rope_theta": 500.0},
            "compress": {"rope_type": "yarn", "rope_theta": 9000.0, "factor": 8, "attention_factor": 1.1,
                         "original_max_position_embeddings": 128}}},
        60,
    ),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_the_slow_models(variant, config) -> None:
    changes, count = VARIANTS[variant]
    fields = config("deepseek_v4", "none") | changes
    model = random_model(fields, seed=11)
    tokens = tokens_of(fields, count)
    slow = Reference(model)
    expected = slow.logits(tokens)
    # ReLU scores tie when heads are few; where a tie decides, no two implementations need agree. Eight heads
    # and these seeds have none.
    assert slow.smallest_gap > 1e-5
    found = logits_in_pieces(model, tokens, [count])
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE
    assert (found.argmax(-1) == expected.argmax(-1)).all()


# Mixing the streams takes most of the time and has no memory: a few iterations do where passes are many.
QUICK = {"hc_sinkhorn_iters": 2}


def test_the_prompt_is_the_same_cut_at_every_point(config) -> None:
    fields = config("deepseek_v4", "none") | VARIANTS["small rates, tight clamp"][0] | QUICK
    model, tokens = random_model(fields), tokens_of(fields, 60)
    whole = logits_in_pieces(model, tokens, [60])
    for cut in range(1, 60):
        pieces = logits_in_pieces(model, tokens, [cut, 60 - cut])
        # On the CPU no product depends on how many rows there are beside it.
        assert np.array_equal(pieces, whole), cut


@pytest.mark.parametrize("sizes", [[1], [3], [7], [16], [17, 1, 1, 1, 30, 2], [130, 1]])
def test_the_prompt_is_the_same_in_pieces_of_any_size(sizes, config) -> None:
    fields = config("deepseek_v4", "none") | QUICK
    model, tokens = random_model(fields), tokens_of(fields, 150)
    whole = logits_in_pieces(model, tokens, [150])
    assert np.array_equal(logits_in_pieces(model, tokens, sizes), whole)


def test_ties_of_the_indexer_are_broken_alike_in_pieces_and_at_once(config) -> None:
    """One head, so that ReLU makes about half of all scores equal."""
    fields = config("deepseek_v4", "none") | {"index_n_heads": 1, "index_topk": 7} | QUICK
    model, tokens = random_model(fields), tokens_of(fields, 70)
    slow = Reference(model)
    slow.logits(tokens)
    assert slow.smallest_gap == 0
    whole = logits_in_pieces(model, tokens, [70])
    for sizes in ([1], [7], [50, 20]):
        assert np.array_equal(logits_in_pieces(model, tokens, sizes), whole)


def test_blocks_of_queries_change_nothing(config, monkeypatch) -> None:
    fields = config("deepseek_v4", "none")
    model, tokens = random_model(fields), tokens_of(fields, 90)
    whole = logits_in_pieces(model, tokens, [90])
    monkeypatch.setattr("mach_store.deepseek_v4.attention.SCORE_ELEMENTS", 1)
    monkeypatch.setattr("mach_store.deepseek_v4.attention.GATHERED_ELEMENTS", 3000)
    monkeypatch.setattr("mach_store.deepseek_v4.indexer.SCORE_ELEMENTS", 700)
    assert np.array_equal(logits_in_pieces(model, tokens, [90]), whole)


def test_decoding_projects_the_new_token_alone(config) -> None:
    fields = config("deepseek_v4", "none")
    model, tokens = random_model(fields), tokens_of(fields, 40)
    rows: list[int] = []
    for layer in model.layers:
        for path, module in layer.named_modules():
            if path.endswith(("kv_proj", "gate_proj", "q_b_proj", "weights_proj")):
                owner = layer
                *parents, name = path.split(".")
                for part in parents:
                    owner = owner[part]
                setattr(owner, name, Counting(module, rows))
    cache = model.make_cache()
    mx.eval(model(mx.array([tokens]), cache=cache))
    assert rows
    rows.clear()
    for token in tokens[:9]:
        mx.eval(model(mx.array([[token]]), cache=cache))
    assert set(rows) == {1}


class Counting:
    """A projection that writes down how many rows it was given."""

    def __init__(self, module, rows: list[int]) -> None:
        self.module, self.rows = module, rows

    def __call__(self, x, *rest, **named):
        self.rows.append(x.shape[0])
        return self.module(x, *rest, **named)


def test_more_than_one_sequence_is_refused(config) -> None:
    model = random_model(config("deepseek_v4", "none"))
    for shape in ((2, 3), (4,), (1, 1, 2)):
        with pytest.raises(StoreError, match=r"must be \[1, n\]"):
            model(mx.zeros(shape, mx.int32))


def test_a_model_without_a_cache_takes_the_tokens_as_a_whole_sequence(config) -> None:
    fields = config("deepseek_v4", "none")
    model, tokens = random_model(fields), tokens_of(fields, 30)
    assert np.array_equal(np.array(model(mx.array([tokens]))[0]), logits_in_pieces(model, tokens, [30]))
