"""Owns keep lists: the JSON-lines plan that names the experts to keep, its reading and its validation.

One line is one candidate: `{"candidate_id": "…", "keep": {"0": [expert, …], …}}` (docs/prune.md). Plans come
from strangers: lines are bounded, types are checked, and nothing unknown is ignored.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mach.io.arch_adapter import MoeShape
from mach_store.errors import PlanError

MAX_LINE_BYTES = 16 << 20
MAX_LINES = 100_000
MAX_ID_LENGTH = 200
_SHOWN_IDS = 20
_LAYER = re.compile(r"0|[1-9][0-9]{0,4}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepPlan:
    """Which experts stay.

    Attributes:
        candidate_id: the plan's name for it; None where every expert stays without a plan.
        experts: MoE layer → the source's expert numbers that stay, ascending, equally many in each layer.
    """

    candidate_id: str | None
    experts: Mapping[int, tuple[int, ...]]

    @property
    def num_experts(self) -> int:
        """Experts that each layer keeps."""
        return len(next(iter(self.experts.values())))


def keep_all(shape: MoeShape) -> KeepPlan:
    """The plan that keeps every expert."""
    every = tuple(range(shape.num_experts))
    return KeepPlan(candidate_id=None, experts=dict.fromkeys(shape.moe_layers, every))


def read_plan(path: str | os.PathLike[str], candidate_id: str | None, shape: MoeShape) -> KeepPlan:
    """One candidate of the plan file `path`, checked against a checkpoint.

    Args:
        path: a regular file of JSON lines.
        candidate_id: which line; None takes the only one there is.
        shape: the checkpoint's routed part.

    Raises:
        PlanError: the file cannot be read, a line is malformed (also one that is not asked for), there is no
            such candidate or several to choose from, or the candidate does not fit the checkpoint: layers
            missing or unknown, experts that do not exist or are named twice, fewer than the router's top-k,
            or not the same number in every layer.
    """
    path = os.fspath(path)
    lines: dict[str, int] = {}
    chosen: tuple[int, dict[str, Any]] | None = None
    for number, name, keep in _candidates(path):
        if name in lines:
            raise PlanError(
                f"{path}:{number}: candidate_id {name!r} is also on line {lines[name]}",
                path=path,
                line=number,
            )
        lines[name] = number
        if candidate_id is None or name == candidate_id:
            chosen = number, keep
    names = ", ".join(map(repr, list(lines)[:_SHOWN_IDS])) + (", …" if len(lines) > _SHOWN_IDS else "")
    if not lines:
        raise PlanError(f"{path}: holds no candidate", path=path)
    if candidate_id is None and len(lines) > 1:
        raise PlanError(f"{path}: choose one with --candidate-id: {names}", path=path)
    if chosen is None:
        raise PlanError(f"{path}: has no candidate {candidate_id!r}, only {names}", path=path)
    number, keep = chosen
    return KeepPlan(
        candidate_id=next(name for name, line in lines.items() if line == number),
        experts=_fitting(keep, shape, path, number),
    )


def _candidates(path: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(line number, candidate_id, keep object) of each line, types of the outer fields checked."""
    try:
        # A FIFO would block in open() for ever: look before opening.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise PlanError(f"{path}: not a regular file", path=path)
        with open(path, "rb") as handle:
            for number in range(1, MAX_LINES + 2):
                raw = handle.readline(MAX_LINE_BYTES + 1)
                if not raw:
                    return
                if number > MAX_LINES:
                    raise PlanError(f"{path}: more than {MAX_LINES} lines", path=path, line=number)
                yield number, *_candidate(raw, path, number)
    except OSError as error:
        raise PlanError(f"{path}: cannot be read ({error.strerror})", path=path) from error


def _candidate(raw: bytes, path: str, number: int) -> tuple[str, dict[str, Any]]:
    def wrong(problem: str) -> PlanError:
        return PlanError(f"{path}:{number}: {problem}", path=path, line=number)

    if len(raw) > MAX_LINE_BYTES:
        raise wrong(f"longer than {MAX_LINE_BYTES} bytes, which no plan is")
    if not raw.strip():
        raise wrong("the line is empty: take it out; each line holds one candidate")
    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise wrong("nested too deeply for a plan") from None
    except ValueError as error:  # also what is not UTF-8
        raise wrong(f"not a JSON object ({error})") from None
    if type(document) is not dict:
        raise wrong("not a JSON object; each line holds one candidate")
    unknown = sorted(document.keys() - {"candidate_id", "keep"})
    if unknown:
        raise wrong(f"unknown field {unknown[0][:100]!r}; a candidate has candidate_id and keep")
    name, keep = document.get("candidate_id"), document.get("keep")
    if type(name) is not str or not 0 < len(name) <= MAX_ID_LENGTH:
        raise wrong(f"candidate_id must be a string of 1 to {MAX_ID_LENGTH} characters")
    if type(keep) is not dict:
        raise wrong("keep must be an object: layer number → list of expert numbers")
    return name, keep


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    return result


def _fitting(keep: dict[str, Any], shape: MoeShape, path: str, number: int) -> dict[int, tuple[int, ...]]:
    """The keep object as numbers, if it fits the checkpoint."""

    def wrong(problem: str) -> PlanError:
        return PlanError(f"{path}:{number}: {problem}", path=path, line=number)

    layers: dict[int, tuple[int, ...]] = {}
    for key, experts in keep.items():
        if not _LAYER.fullmatch(key) or int(key) not in shape.moe_layers:
            raise wrong(f"layer {key[:100]!r} is no MoE layer of this checkpoint ({_span(shape.moe_layers)})")
        layer = int(key)
        if type(experts) is not list or any(type(expert) is not int for expert in experts):
            raise wrong(f"layer {layer} is not a list of expert numbers")
        odd = next((expert for expert in experts if not 0 <= expert < shape.num_experts), None)
        if odd is not None:
            shown = odd if abs(odd) < 10**18 else "far too large a number"
            raise wrong(f"layer {layer} names expert {shown}; there are 0 to {shape.num_experts - 1}")
        if len(set(experts)) != len(experts):
            twice = next(expert for i, expert in enumerate(experts) if expert in experts[:i])
            raise wrong(f"layer {layer} names expert {twice} twice")
        if len(experts) < shape.top_k:
            raise wrong(
                f"layer {layer} keeps {len(experts)} experts, fewer than the {shape.top_k} that each token "
                "is routed to"
            )
        layers[layer] = tuple(sorted(experts))
    missing = [layer for layer in shape.moe_layers if layer not in layers]
    if missing:
        raise wrong(
            f"layer {missing[0]} is missing; every MoE layer ({_span(shape.moe_layers)}) must be there"
        )
    counts = {len(experts): layer for layer, experts in layers.items()}
    if len(counts) > 1:
        (few, here), *_, (many, there) = sorted(counts.items())
        raise wrong(
            f"layer {here} keeps {few} experts and layer {there} {many}: the model has one number of experts "
            "for all layers, so a plan must keep equally many in each"
        )
    return dict(sorted(layers.items()))


def _span(layers: tuple[int, ...]) -> str:
    if layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]} to {layers[-1]}"
    return f"{len(layers)} between {layers[0]} and {layers[-1]}"
