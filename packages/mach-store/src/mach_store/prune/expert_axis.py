"""Owns the table of tensors that have an expert axis although they are no experts, and how they shrink.

A router has one row per expert; what it selects by number must be renumbered. Names are those of mlx-lm 0.32
and of the published checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mach.io.arch_adapter import MoeArchAdapter
from mach.io.safetensors_header import TensorEntry
from mach_store.errors import PruneError
from mach_store.safetensors_writer import read_range

_TABLE_BYTES = 8 << 20
_INTEGERS: dict[str, type[np.integer]] = {
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
}  # fmt: skip


class ExpertAxis(NamedTuple):
    """One family's tensors under a decoder layer that count experts.

    Attributes:
        modules: linear modules with one output per expert: every parameter of theirs has experts on axis 0,
            also when it is quantised, as packing runs along the inputs.
        parameters: single parameters with experts on axis 0.
        tables: integer parameters whose values are expert numbers.
    """

    modules: tuple[str, ...]
    parameters: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()


EXPERT_AXES: dict[str, ExpertAxis] = {
    "deepseek_v4": ExpertAxis(
        modules=("ffn.gate", "mlp.gate"),
        parameters=("ffn.gate.e_score_correction_bias", "mlp.gate.e_score_correction_bias"),
        tables=("ffn.gate.tid2eid", "mlp.gate.tid2eid"),
    ),
    "qwen3_5_moe": ExpertAxis(modules=("mlp.gate",)),
    "qwen3_moe": ExpertAxis(modules=("mlp.gate",)),
    "gpt_oss": ExpertAxis(modules=("mlp.router",)),
    "gemma4": ExpertAxis(modules=("router.proj",), parameters=("router.per_expert_scale",)),
}


class AxisPlace(NamedTuple):
    """A tensor with an expert axis: `kind` is `rows` or `table`, `layer` its decoder layer."""

    kind: str
    layer: int


class ExpertAxisNames:
    """Recognises a family's tensors with an expert axis in every spelling of its layers."""

    def __init__(self, adapter: MoeArchAdapter) -> None:
        axis, names = EXPERT_AXES[adapter.model_type], adapter.names
        raw = (block for form in names.raw for block in form.blocks)
        templates = (names.switch_block, *names.switch_block_aliases, *raw)
        roots = "|".join(sorted({re.escape(t.partition("{layer}")[0]) for t in templates}))
        modules = "|".join(map(re.escape, axis.modules))
        rows = rf"(?:{modules})\.(?:weight|scales|biases|bias)"
        for parameter in axis.parameters:
            rows += f"|{re.escape(parameter)}"
        tables = "|".join(map(re.escape, axis.tables)) or r"(?!)"
        self._pattern = re.compile(
            rf"(?:{roots})(\d{{1,5}})\.(?:(?P<rows>{rows})|(?P<table>{tables}))", re.ASCII
        )

    def place(self, name: str) -> AxisPlace | None:
        """What `name` says, or None if the tensor has no expert axis."""
        match = self._pattern.fullmatch(name)
        if match is None:
            return None
        return AxisPlace("rows" if match["rows"] else "table", int(match[1]))


def kept_rows(entry: TensorEntry, kept: Sequence[int]) -> Iterator[bytes]:
    """The bytes of the rows `kept`, ascending, of a tensor with experts on axis 0."""
    row = entry.nbytes // entry.shape[0]
    for first, count in _runs(kept):
        yield from read_range(entry.file, entry.start + first * row, count * row)


def require_experts(name: str, entry: TensorEntry, num_experts: int) -> None:
    """Refuse a tensor whose first axis is not the experts.

    Raises:
        PruneError: it is something else.
    """
    if not entry.shape or entry.shape[0] != num_experts:
        raise PruneError(
            f"{entry.file}: {name} is {list(entry.shape)}, but config.json makes its first axis "
            f"{num_experts} experts"
        )


def renumbered(
    name: str, entry: TensorEntry, kept: Sequence[int], num_experts: int, layer: int
) -> Iterator[bytes]:
    """A table of expert numbers with the numbers that the kept experts will have.

    Raises:
        PruneError: the table is not of integers or names an expert that does not exist.
    """
    numbers = np.full(num_experts, -1, np.int64)
    numbers[list(kept)] = np.arange(len(kept))
    for values in _table(name, entry, num_experts, layer):
        yield numbers[values].astype(values.dtype).tobytes()


def require_named_kept(
    name: str, entry: TensorEntry, kept: Sequence[int], num_experts: int, layer: int
) -> None:
    """Refuse to drop an expert that a table names, since its tokens would have nowhere to go.

    Raises:
        PruneError: `kept` lacks one, or as `renumbered`.
    """
    named = np.zeros(num_experts, bool)
    for values in _table(name, entry, num_experts, layer):
        named[values.reshape(-1)] = True
    named[list(kept)] = False
    if named.any():
        lost = int(np.flatnonzero(named)[0])
        raise PruneError(
            f"{entry.file}: layer {layer} routes tokens by the table {name}, which names expert {lost}, and "
            f"the plan drops it ({int(named.sum())} such experts): keep every expert that the table names"
        )


def _table(name: str, entry: TensorEntry, num_experts: int, layer: int) -> Iterator[np.ndarray]:
    if entry.dtype not in _INTEGERS:
        raise PruneError(f"{entry.file}: {name} has dtype {entry.dtype}, which is no table of expert numbers")
    for chunk in read_range(entry.file, entry.start, entry.nbytes, _TABLE_BYTES):
        values = np.frombuffer(chunk, _INTEGERS[entry.dtype])
        if values.size and not (0 <= values.min() and values.max() < num_experts):
            raise PruneError(
                f"{entry.file}: layer {layer}: {name} names an expert outside 0 to {num_experts - 1}"
            )
        yield values


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as (first, count) of consecutive ones."""
    first = count = 0
    for number in numbers:
        if count and number == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = number, 1
    if count:
        yield first, count
