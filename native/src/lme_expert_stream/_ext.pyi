from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from lme_cpu_kernels import ExpertProduct

Arrival = tuple[int, int, int, bool]
"""(expert, slot, key that was evicted from it or -1, whether the read failed and the slot is empty)."""

Pass = tuple[int, int, int, list[int], list[Arrival], int, bytes, int, float, float]
"""(layer, mark, serial, hits, arrivals in order, k, routes, bytes, reading, waiting).

Hits are the distinct experts that were there; routes are uint32 [tokens, k]. Bytes were read from disk.
Reading and waiting are seconds: from the first read to the end of the last, and in which nothing was
computed because of them.
"""

class StreamedLayer:
    """A layer's routed experts, lazily."""

    def __call__(self, x: mx.array, ids: mx.array, mark: int) -> mx.array:
        """X [..., hidden] float32, ids [..., k] int32 or uint32 → [..., k, hidden] float32.

        The log of the pass has `mark`, which means nothing here.

        Looks experts up when it is evaluated, whatever the graph was built with. A pass that fails, and
        every one after it, gives NaN: ask `ExpertStream.drain` before a result is used.

        Raises:
            ValueError: a dtype or shape is not as described.
        """

class ExpertStream:
    """A model's routed experts while most are on disk.

    A pass of a layer runs in MLX's own thread and never takes the GIL: it looks its experts up in the table
    of the pool, reads the missing ones into slots that were dealt beforehand, computes the resident ones
    meanwhile and the others as they arrive, and logs what it did.

    Experts are named by keys: `add_layer` says the key of a layer's first one. Layers and pools are
    numbered in the order of their adding. All methods may be called while passes run.

    `threads` read besides the thread that runs a pass. `direct`: the descriptors were opened with O_DIRECT.
    """

    def __init__(self, *, threads: int, direct: bool) -> None: ...
    def add_pool(self, arrays: Sequence[mx.array], nbytes: Sequence[int], widen: Sequence[bool]) -> int:
        """A pool of slots; arguments and errors as `lme_mlx_pread_ext.ScatterPlan`. Returns its number."""

    def add_layer(
        self,
        pool: int,
        experts: int,
        fds: Sequence[int],
        offsets: Sequence[int],
        crcs: Sequence[int] | None,
    ) -> tuple[int, int]:
        """A layer whose experts go into `pool`; places and checksums of all of them, as `ScatterPlan.read`.

        The descriptors must stay open until `wait` has returned and nothing is queued any more.

        Returns:
            Its number, and the key of its first expert.

        Raises:
            ValueError: lists do not fit together, or a value is out of its range.
        """

    def uses(self, layer: int) -> memoryview:
        """For each expert the passes that asked for it, [experts] unsigned 64-bit, live and writable."""

    def layer(self, layer: int, product: ExpertProduct) -> StreamedLayer:
        """The layer with its arithmetic; `product` is made over the pool's own arrays.

        Raises:
            ValueError: the product has another number of slots.
        """

    def deal(self, pool: int, slots: Sequence[int], keys: Sequence[int], serial: int) -> None:
        """Replace the hand: slots that passes may take, in this order, and what is in them (-1: nothing).

        `serial` is that of the log which the choice was made with: what was used, filled or emptied since is
        passed over. When the hand is used up, the expert used longest ago leaves.
        """

    def dealt(self, pool: int) -> int:
        """Candidates left of the hand."""

    def set(self, pool: int, slots: Sequence[int], keys: Sequence[int]) -> None:
        """Somebody else has filled `slots` with `keys`, or emptied them (-1), while no pass ran."""

    def pin(self, pool: int, slots: Sequence[int]) -> None:
        """Never take these until `unpin`: somebody else's graph refers to them."""

    def unpin(self) -> None:
        """Release every pin."""

    def keys(self, pool: int) -> list[int]:
        """What is in each slot; -1 for nothing."""

    def drain(self) -> tuple[int, list[Pass], Mapping[str, Any] | None]:
        """Everything since the last call: (serial, passes, failure); what was used up to `serial` is told.

        A failure stays until `forgive`, and passes fail until then. Its keys: "kind" ("read", "checksum",
        "changed", "route", "slots" or "memory") and "layer"; "expert" and the fields of `ReadError` or
        `ChecksumError`, or the "segment" of a file that was "changed" since its layer was added; "routes",
        the distinct ids.
        """

    def forgive(self) -> None:
        """Forget the failure: passes run again."""

    def skip(self, on: bool) -> None:
        """While on, passes give zeros at once and change nothing: their results will be thrown away."""

    def wait(self) -> None:
        """Without the GIL, until no pass is queued or running."""

def build_info() -> dict[str, str]:
    """How the extension was built. Keys: "version", "compiler", "mlx" (the version built against)."""
