"""Owns what happens in a trace, and its form in a block's bytes: events first, then ids layer by layer.

Ids of one layer lie together, and those of one token ascend: that is what compresses them. A router gives
them in no order that means anything (MLX's argpartition promises none).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mach_store.trace.trace_header import TraceHeader

EVENT = struct.Struct("<BBHI")
COUNT = struct.Struct("<I")
_BEGAN, _PASS, _ENDED = 1, 2, 3
Ids = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class AnswerBegan:
    """An answer to a prompt of `prompt_tokens` tokens begins."""

    prompt_tokens: int


class ModelPass(NamedTuple):
    """One pass over the model.

    Attributes:
        prefill: whether it processed a part of the prompt.
        ids: for each MoE layer, in order, [tokens, top_k] expert ids, ascending for each token once they have
            been read; fewer layers where the pass was broken off.
    """

    prefill: bool
    ids: Sequence[Ids]

    @property
    def tokens(self) -> int:
        """Tokens in it, at least one."""
        return len(self.ids[0])


@dataclass(frozen=True, slots=True)
class AnswerEnded:
    """The answer is over; not `finished` where it was cancelled or failed."""

    finished: bool


Event = AnswerBegan | ModelPass | AnswerEnded


def id_dtype(header: TraceHeader) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
    """How ids of this trace are stored: `<u1` or `<u2`."""
    return np.dtype("<u1") if header.id_bytes == 1 else np.dtype("<u2")


def encoded_bytes(event: Event, header: TraceHeader) -> int:
    """Bytes that an event takes in a block."""
    ids = len(event.ids) * event.tokens * header.top_k if isinstance(event, ModelPass) else 0
    return EVENT.size + ids * header.id_bytes


def encode(events: Sequence[Event], header: TraceHeader) -> bytes:
    """A block's plain bytes."""
    table, dtype = [COUNT.pack(len(events))], id_dtype(header)
    for event in events:
        match event:
            case AnswerBegan(prompt_tokens):
                table.append(EVENT.pack(_BEGAN, 0, 0, prompt_tokens))
            case ModelPass(prefill, ids):
                table.append(EVENT.pack(_PASS, int(prefill), len(ids), event.tokens))
            case AnswerEnded(finished):
                table.append(EVENT.pack(_ENDED, int(finished), 0, 0))
    passes = [event for event in events if isinstance(event, ModelPass)]
    for position in range(len(header.layers)):
        parts = [one.ids[position] for one in passes if position < len(one.ids)]
        if parts:
            table.append(np.sort(np.concatenate(parts), axis=1).astype(dtype).tobytes())
    return b"".join(table)


def decode(plain: bytes, header: TraceHeader) -> list[Event]:
    """The events of a block.

    Raises:
        ValueError: the bytes contradict themselves or the header; the message names the field.
    """
    if len(plain) < COUNT.size:
        raise ValueError(f"events: {len(plain)} bytes hold no count")
    (count,) = COUNT.unpack_from(plain)
    if count > (len(plain) - COUNT.size) // EVENT.size:
        raise ValueError(f"events: {count} do not fit into {len(plain)} bytes")
    layers, k, dtype = len(header.layers), header.top_k, id_dtype(header)
    table = [EVENT.unpack_from(plain, COUNT.size + EVENT.size * at) for at in range(count)]
    parts: dict[int, list[Ids]] = {}
    routes = 0
    for at, (kind, flag, computed, value) in enumerate(table):
        if kind not in (_BEGAN, _PASS, _ENDED):
            raise ValueError(f"event {at}: kind {kind} is unknown")
        if flag > (kind != _BEGAN):
            raise ValueError(f"event {at}: flag {flag} is unknown")
        if kind == _PASS:
            if not (1 <= computed <= layers and value >= 1):
                raise ValueError(f"event {at}: a pass of {value} tokens over {computed} of {layers} layers")
            parts[at] = []
            routes += computed * value * k
        elif computed or (kind == _ENDED and value):
            raise ValueError(f"event {at}: fields that must be 0 are not")
    begin = COUNT.size + EVENT.size * count
    if len(plain) - begin != routes * dtype.itemsize:
        raise ValueError(f"ids: {len(plain) - begin} bytes for {routes} ids of {dtype.itemsize} bytes")
    ids: Ids = np.frombuffer(plain, np.uint8 if dtype.itemsize == 1 else "<u2", offset=begin)
    if routes and int(ids.max()) >= header.experts:
        raise ValueError(f"ids: expert {ids.max()} of {header.experts}")
    taken = 0
    for position in range(layers):
        for at, own in parts.items():
            if position < table[at][2]:
                size = table[at][3] * k
                own.append(ids[taken : taken + size].reshape(-1, k))
                taken += size
    events: list[Event] = []
    for at, (kind, flag, _, value) in enumerate(table):
        if kind == _BEGAN:
            events.append(AnswerBegan(value))
        elif kind == _PASS:
            events.append(ModelPass(bool(flag), parts[at]))
        else:
            events.append(AnswerEnded(bool(flag)))
    return events
