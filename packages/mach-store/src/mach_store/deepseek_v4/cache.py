"""Owns one layer's state between passes: the window, the compressed entries, and what is not compressed yet.

The cache kind `compressed`. It follows mlx-lm's cache conventions (`state`, `from_state`, `offset`, `nbytes`,
`is_trimmable`) for one sequence, and knows shapes but no arithmetic of the model.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mach_store.errors import StoreError

ROW_STEP = 64
"""Entries by which the array of compressed entries grows."""


class RowBuffer:
    """Rows [count, dim] that only grow, in an array with room to spare."""

    def __init__(self) -> None:
        self.array: mx.array | None = None
        self.count = 0

    def append(self, rows: mx.array) -> None:
        """Add rows [n, dim] at the end."""
        end = self.count + rows.shape[0]
        if self.array is None or end > self.array.shape[0]:
            room = mx.zeros((-(-end // ROW_STEP) * ROW_STEP - self.count, rows.shape[1]), rows.dtype)
            filled = [] if self.array is None else [self.array[: self.count]]
            self.array = mx.concatenate([*filled, room])
        self.array[self.count : end] = rows
        self.count = end

    def rows(self) -> mx.array:
        """All rows so far; there must be some."""
        assert self.array is not None, "no group is closed yet"
        return self.array[: self.count]


class GroupState:
    """What one compressor keeps: its entries, and tokens of the group that is still open.

    Attributes:
        entries: the compressed entries.
        open_values: [n, width] projected values of the open group's n tokens; None for none.
        open_gates: as many gates, without the position bias.
        last_values: [ratio, dim] the first series of the last closed group, which the next entry overlaps.
        last_gates: its gates, with the position bias.
    """

    def __init__(self) -> None:
        self.entries = RowBuffer()
        self.open_values: mx.array | None = None
        self.open_gates: mx.array | None = None
        self.last_values: mx.array | None = None
        self.last_gates: mx.array | None = None

    def take(self, values: mx.array, gates: mx.array, ratio: int) -> tuple[mx.array, mx.array] | None:
        """Add tokens; the groups that they complete as [groups, ratio, width] twice, or None."""
        if self.open_values is not None:
            values = mx.concatenate([self.open_values, values])
            assert self.open_gates is not None, "values and gates are kept together"
            gates = mx.concatenate([self.open_gates, gates])
        full = values.shape[0] // ratio * ratio
        rest = full < values.shape[0]
        self.open_values = own_copy(values[full:]) if rest else None
        self.open_gates = own_copy(gates[full:]) if rest else None
        if not full:
            return None
        shape = (full // ratio, ratio, values.shape[1])
        return values[:full].reshape(shape), gates[:full].reshape(shape)

    @property
    def state(self) -> tuple[Any, ...]:
        """Everything, as arrays, None and an integer."""
        parts = (self.open_values, self.open_gates, self.last_values, self.last_gates)
        return (self.entries.array, self.entries.count, *parts)

    @state.setter
    def state(self, state: tuple[Any, ...]) -> None:
        self.entries = RowBuffer()
        self.entries.array, self.entries.count = state[:2]
        self.open_values, self.open_gates, self.last_values, self.last_gates = state[2:]


class CompressedCache:
    """One layer's cache, for one sequence.

    Attributes:
        offset: tokens seen so far.
        window_size: tokens that a query sees, itself included.
        window: [n, head_dim] rotated keys, which are the values too, of at most window_size − 1 last tokens.
        groups: one state per compressor of the layer: none, its own, or its own and the indexer's.
    """

    def __init__(self, window_size: int, compressors: int) -> None:
        self.offset = 0
        self.window_size = window_size
        self.window: mx.array | None = None
        self.groups = tuple(GroupState() for _ in range(compressors))

    def extend_window(self, keys: mx.array) -> mx.array:
        """Add keys [n, head_dim]; those that the new tokens can see, the new ones last."""
        seen = keys if self.window is None else mx.concatenate([self.window, keys])
        kept = min(seen.shape[0], self.window_size - 1)
        self.window = own_copy(seen[seen.shape[0] - kept :]) if kept else None
        self.offset += keys.shape[0]
        return seen

    @property
    def state(self) -> tuple[Any, ...]:
        """Everything, as arrays, None and integers, for evaluation, copies and files."""
        return (self.offset, self.window_size, self.window, *(group.state for group in self.groups))

    @state.setter
    def state(self, state: tuple[Any, ...]) -> None:
        self.offset, self.window_size, self.window = state[:3]
        self.groups = tuple(GroupState() for _ in state[3:])
        for group, part in zip(self.groups, state[3:], strict=True):
            group.state = part

    @classmethod
    def from_state(cls, state: tuple[Any, ...]) -> CompressedCache:
        """A cache that goes on where `state` was taken."""
        cache = cls(1, 0)
        cache.state = state
        return cache

    @property
    def arrays(self) -> list[mx.array]:
        """Every array that is kept."""
        parts = [self.window, *(part for group in self.groups for part in group.state)]
        return [part for part in parts if isinstance(part, mx.array)]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, with the room to grow."""
        return sum(array.nbytes for array in self.arrays)

    def size(self) -> int:
        """Tokens seen so far."""
        return self.offset

    def empty(self) -> bool:
        """Whether no token was seen."""
        return self.offset == 0

    def is_trimmable(self) -> bool:
        """Never: a closed group's tokens and the keys behind the window are gone."""
        return False

    def trim(self, n: int) -> int:
        """Refuse.

        Raises:
            StoreError: always, unless `n` is 0.
        """
        if n:
            raise StoreError(
                "a compressed cache cannot be trimmed: what it compressed is gone; make a new one"
            )
        return 0


def own_copy(rows: mx.array) -> mx.array:
    """The same rows in memory of their own: a slice would keep the whole pass's array alive."""
    return rows * 1
