"""Owns what a routing trace says of itself: the model it was recorded from, the bank, and the end.

`docs/trace-format.md` describes the fields. It refuses to know blocks and bytes.
"""

from __future__ import annotations

from typing import Literal

import msgspec

FORMAT = "mach-routing-trace"
VERSION = 1
MAX_EXPERTS = 1 << 16
MAX_LAYERS = 4096
MAX_ALL_EXPERTS = 1 << 20
"""Of all layers together: what a replay holds tables of."""
MAX_SLOT_BYTES = 1 << 40

Ending = Literal["finished", "limit", "error"]
"""Why a recording ended: whoever recorded had enough, its byte limit was reached, or it could not go on."""


class TraceRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the model was run while it was recorded.

    Attributes:
        recorded_by: the command.
        started: ISO 8601, UTC.
        versions: distribution → version.
        residency: of the experts, e.g. `streaming`.
        dispatch: `in-graph`, `gather` or `disk`.
        policy: the bank's eviction policy; empty where there is no bank.
        bank_slots: slots of each pool, in the order of their numbers; empty where there is no bank.
        transient_min_tokens: passes of so many tokens went past the bank, through the scratch arena.
        scratch_experts: experts of one layer that the arena held at once.
        narrow: for each pool whether it was widened before use, which bounds a pass's experts of one layer by
            `scratch_experts`; empty where there is no bank.
    """

    recorded_by: str
    started: str
    versions: dict[str, str]
    residency: str
    dispatch: str
    policy: str
    bank_slots: list[int]
    transient_min_tokens: int
    scratch_experts: int
    narrow: list[bool]


class TraceHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a trace was recorded from. Lists with an entry per MoE layer follow the order of `layers`.

    Attributes:
        format: FORMAT.
        version: VERSION.
        architecture: the key in config.json, e.g. `qwen3_moe`.
        checkpoint: what the checkpoint is called.
        fingerprint: names its files as they were: equal for equal weights.
        layers: model indices of the MoE layers, ascending: the order in which a pass computes them.
        experts: per layer.
        top_k: experts per token and layer.
        record_bytes: bytes of one expert on disk, per layer.
        slot_bytes: bytes of one expert in the bank, per layer.
        pools: number of the pool that a layer's experts share with others, per layer; from 0 without gaps.
        run: how it was run.
    """

    architecture: str
    checkpoint: str
    fingerprint: str
    layers: list[int]
    experts: int
    top_k: int
    record_bytes: list[int]
    slot_bytes: list[int]
    pools: list[int]
    run: TraceRun
    format: str = FORMAT
    version: int = VERSION

    @property
    def id_bytes(self) -> int:
        """Bytes of one expert id: 1 where that holds them all, else 2."""
        return 1 if self.experts <= 256 else 2

    @property
    def pool_count(self) -> int:
        """How many pools the layers form."""
        return max(self.pools) + 1

    def most_at_once(self, pool: int) -> int:
        """Experts of one layer that a pass may use out of a pool's slots, as far as the arena bounds that."""
        narrow = bool(self.run.narrow) and self.run.narrow[pool]
        return min(self.run.scratch_experts, self.experts) if narrow else self.experts

    def contradiction(self) -> str:
        """What cannot be, as `field: why`; empty where all is well."""
        layers = len(self.layers)
        lists = {"record_bytes": self.record_bytes, "slot_bytes": self.slot_bytes, "pools": self.pools}
        if self.format != FORMAT:
            return f"format: {self.format!r:.80} is not {FORMAT!r}"
        if self.version != VERSION:
            return f"version: {self.version} is not {VERSION}, the only one that this reader knows"
        if not 1 <= layers <= MAX_LAYERS:
            return f"layers: {layers} of them; 1 to {MAX_LAYERS} are possible"
        if self.layers[0] < 0 or any(a >= b for a, b in zip(self.layers, self.layers[1:], strict=False)):
            return "layers: do not ascend from 0 or above"
        if not 1 <= self.experts <= MAX_EXPERTS:
            return f"experts: {self.experts} is not within 1…{MAX_EXPERTS}"
        if self.experts * layers > MAX_ALL_EXPERTS:
            return f"experts, layers: {self.experts} × {layers} are more than {MAX_ALL_EXPERTS}"
        if not 1 <= self.top_k <= self.experts:
            return f"top_k: {self.top_k} is not within 1…{self.experts}"
        for name, values in lists.items():
            if len(values) != layers:
                return f"{name}: has {len(values)} entries for {layers} layers"
        if not all(0 < size <= MAX_SLOT_BYTES for size in (*self.record_bytes, *self.slot_bytes)):
            return f"record_bytes, slot_bytes: not all within 1…{MAX_SLOT_BYTES}"
        if min(self.pools) < 0 or set(self.pools) != set(range(min(layers, max(self.pools) + 1))):
            return "pools: are not numbered from 0 without gaps"
        slots = self.run.bank_slots
        if slots and (len(slots) != self.pool_count or min(slots) < 1):
            return f"run.bank_slots: {slots!r:.80} are not the slots of {self.pool_count} pools"
        if self.run.narrow and len(self.run.narrow) != self.pool_count:
            return f"run.narrow: has {len(self.run.narrow)} entries for {self.pool_count} pools"
        if self.run.transient_min_tokens < 1 or self.run.scratch_experts < 1:
            return "run.transient_min_tokens, run.scratch_experts: must be at least 1"
        return ""


class TraceEnding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The last block of a trace whose recording came to an end.

    Attributes:
        ended: why.
        answers: that began.
        passes: over the model, whole or broken off.
        routes: expert ids in the trace.
    """

    ended: Ending
    answers: int
    passes: int
    routes: int
