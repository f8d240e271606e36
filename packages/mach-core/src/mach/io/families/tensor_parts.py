"""Owns the tensors that every family's model has in the same shape: attention, feed-forward, both ends."""

from __future__ import annotations

from collections.abc import Iterator

Extents = tuple[int, ...]
Tensors = Iterator[tuple[str, Extents]]


def attention(
    block: str, hidden: int, queries: int, keys: int, out: int, biases: bool, values: bool = True
) -> Tensors:
    """Projections of an attention block: `queries`, `keys` and `out` are heads × width."""
    sizes = {"q_proj": (queries, hidden), "k_proj": (keys, hidden)}
    if values:
        sizes["v_proj"] = (keys, hidden)
    sizes["o_proj"] = (hidden, out)
    for projection, extents in sizes.items():
        yield f"{block}.{projection}.weight", extents
        if biases:
            yield f"{block}.{projection}.bias", extents[:1]


def feed_forward(block: str, hidden: int, width: int) -> Tensors:
    """A gated feed-forward block."""
    yield f"{block}.gate_proj.weight", (width, hidden)
    yield f"{block}.up_proj.weight", (width, hidden)
    yield f"{block}.down_proj.weight", (hidden, width)


def ends(root: str, head: str | None, hidden: int, vocabulary: int) -> Tensors:
    """Embedding, last norm and, where it has a `head` of its own, the output projection."""
    yield f"{root}embed_tokens.weight", (vocabulary, hidden)
    yield f"{root}norm.weight", (hidden,)
    if head is not None:
        yield head, (vocabulary, hidden)
