from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from lme_cpu_kernels import ExpertProduct

Arrival = tuple[int, int, int, int, bool]
"""(expert, slot, slot taken for it, key evicted from that one or -1, whether the read failed: it is empty).

The slot taken is another one when the expert had been read ahead: it belongs to the reserve in its place.
"""

Pass = tuple[int, int, list[int], list[Arrival], int, bytes, int, float, float, int, int]
"""(layer, mark, hits, arrivals in order, k, routes, bytes, reading, waiting, prefetched, used).

Hits are the distinct experts that were there; routes are uint32 [tokens, k]. Bytes were read from disk.
Reading and waiting are seconds: from the first read to the end of the last, and in which nothing was
computed because of them. Prefetched are experts of the layer whose read was begun on a guess, each told
once; used are the arrivals of which that is true.
"""

class StreamedLayer:
    """A layer's routed experts, lazily."""

    def __call__(self, x: mx.array, ids: mx.array, mark: int, scores: mx.array | None = None) -> mx.array:
        """X [..., hidden] float32, ids [..., k] int32 or uint32 → [..., k, hidden] float32.

        The log of the pass has `mark`, which means nothing here. `scores`, [..., experts] float32, foretell
        the next layer's choice, the highest the likeliest; they decide what is read ahead, and no result.

        Looks experts up when it is evaluated, whatever the graph was built with. A pass that fails, and
        every one after it, gives NaN: ask `ExpertStream.drain` before a result is used.

        Raises:
            ValueError: a dtype or shape is not as described.
        """

class ExpertStream:
    """A model's routed experts while most are on disk.

    A pass of a layer runs in MLX's own thread and never takes the GIL: it looks its experts up in the table
    of the pool, reads the missing ones into free slots and those of the experts that leave next, computes
    the resident ones meanwhile and the others as they arrive, and logs what it did.

    Experts are named by keys: `add_layer` says the key of a layer's first one. Layers and pools are
    numbered in the order of their adding. All methods may be called while passes run.

    `threads` read besides the thread that runs a pass. `direct`: the descriptors were opened with O_DIRECT.
    """

    def __init__(self, *, threads: int, direct: bool) -> None: ...
    def add_pool(
        self,
        arrays: Sequence[mx.array],
        nbytes: Sequence[int],
        widen: Sequence[bool],
        *,
        memories: Sequence[tuple[float, float]],
        by_distance: bool,
    ) -> int:
        """A pool of slots, none of which passes take before `offer`. Returns its number.

        `memories` and `by_distance` say how its experts are ranked, as `mach_store.eviction.OrderRule`; the
        other arguments, and errors, are those of `lme_mlx_pread_ext.ScatterPlan`.
        """

    def add_layer(
        self,
        pool: int,
        experts: int,
        fds: Sequence[int],
        offsets: Sequence[int],
        crcs: Sequence[int] | None,
    ) -> tuple[int, int]:
        """A layer whose experts go into `pool`; places and checksums of all of them, as `ScatterPlan.read`.

        A pool's layers are added in the order in which a forward pass visits them.
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

    def set(self, pool: int, slots: Sequence[int], keys: Sequence[int]) -> None:
        """Somebody else has filled `slots` with `keys`, or emptied and taken them (-1), while no pass ran.

        Raises:
            ValueError: an expert is in another slot.
            IndexError: a slot or key is not the pool's.
        """

    def offer(self, pool: int, slots: Sequence[int]) -> None:
        """Passes may take these, the last first.

        Raises:
            ValueError: a slot holds something, or was free.
            IndexError: a slot is not the pool's.
        """

    def pin(self, pool: int, slots: Sequence[int]) -> None:
        """Never take these until `unpin`: somebody else's graph refers to them."""

    def unpin(self) -> None:
        """Release every pin."""

    def keys(self, pool: int) -> list[int]:
        """What is in each slot; -1 for nothing."""

    def next(self, pool: int, count: int) -> list[int]:
        """The experts that would leave next, in order; pinned ones never."""

    def floors(self, pool: int, floors: Sequence[int]) -> None:
        """For each layer of the pool how many experts it keeps while others can give; 0 before."""

    def keep(self, pool: int, keys: Sequence[int]) -> None:
        """These alone are given up only when nothing else is left; they may be in the pool or not."""

    def recall(
        self,
        pool: int,
        layers: Sequence[tuple[int, Sequence[float], Sequence[float]]],
        latest: int | None,
    ) -> None:
        """Somebody else has counted uses: replaces what the order of eviction goes by.

        Passes count their own uses, just as the policies do when they are told of them: hits first, then
        arrivals in order.

        Args:
            pool: its number.
            layers: (place in the pool, for each memory what a use is worth, the counts [memories, experts]);
                without memories (place, the time now, when each expert was used last).
            latest: the place of the layer that was used last; None leaves it.

        Raises:
            ValueError: numbers that counting never gives.
            IndexError: no such layer.
        """

    def prefetch(self) -> None:
        """From now on guess experts of the next layer and read them ahead, where pools have a reserve.

        After the last `add_layer`, before any pass.

        Raises:
            ValueError: layers differ in their number of experts, or the estimates would take too much memory.
        """

    def reserve(self, pool: int, slots: Sequence[int]) -> None:
        """Keep these empty slots for reads ahead, instead of those before; waits as `wait` does.

        Raises:
            IndexError: a slot is not in the pool.
        """

    def drain(self) -> tuple[list[Pass], Mapping[str, Any] | None]:
        """Everything since the last call: (passes, failure).

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
        """Without the GIL, until no pass is queued or running, and nothing is read."""

def build_info() -> dict[str, str]:
    """How the extension was built. Keys: "version", "compiler", "mlx" (the version built against)."""
