from collections.abc import Sequence

import mlx.core as mx
from _typeshed import ReadableBuffer

class ScatterPlan:
    """Where the segments of a record go: one array (bank) per segment, one row per slot.

    `arrays[s]` has the shape [slots, ...], is evaluated and row-contiguous, and keeps its memory as long as
    the plan lives. A slot of it holds `nbytes[s]` bytes, or twice as many where `widen[s]`: then the file has
    bfloat16 and the array takes float32 of the same values, NaNs included. Element types are not looked at.

    The plan writes into the memory of the arrays that it was given. `bank[i] = x` on one of them makes MLX
    copy the bank (the plan holds a reference), after which the name means the copy and the plan still writes
    into the original.

    Never read into a slot that a graph not yet evaluated, or being evaluated, refers to: MLX is not told of
    the write.

    Raises:
        TypeError: an item of `arrays` is no mx.array, of `nbytes` no integer, of `widen` no bool.
        ValueError: the lists differ in length; an array is lazy, strided, empty, of another number of slots
            than the first one, or shares memory with another; a slot does not fit `nbytes` and `widen`.
    """

    def __init__(self, arrays: Sequence[mx.array], nbytes: Sequence[int], widen: Sequence[bool]) -> None: ...
    @property
    def slots(self) -> int:
        """Rows of every array."""

    @property
    def record_bytes(self) -> int:
        """Bytes of one record on disk: the sum of `nbytes`."""

    def read(
        self,
        slots: Sequence[int],
        fds: Sequence[int],
        offsets: Sequence[int],
        crcs: Sequence[int] | None = None,
        *,
        threads: int = 4,
        direct: bool = False,
    ) -> int:
        """Fill `slots` with one record each, without the GIL, from `threads` threads (the caller's included).

        `fds` and `offsets` (bytes) have one entry per slot: the segments follow each other in the file from
        there. Or they have one per slot and segment, slot after slot: each segment lies at a place of its
        own. `crcs` are the CRC-32 of the records as they lie on disk (`zlib.crc32`). With `direct` the
        descriptors have been opened with O_DIRECT; offsets need no alignment, and the file may end right
        after the last record. On macOS `direct` changes nothing: set F_NOCACHE.

        May be called from several threads at a time, for different slots. Everything is checked before the
        first write.

        Returns:
            The bytes read, len(slots) * record_bytes.

        Raises:
            IndexError: a slot does not exist.
            ValueError: a slot is named twice; lengths differ; a descriptor, offset, checksum or `threads`
                (1 to 64) is out of its range.
            ReadError: the system reported an error, or the file ended.
            ChecksumError: a record differs from its checksum.

        After ReadError and ChecksumError every slot of the call may hold anything; both name the first bad
        record of the call, whatever the threads did.
        """

def crc32(data: ReadableBuffer, value: int = 0) -> int:
    """CRC-32 of contiguous `data`, going on from `value`: equal to `zlib.crc32`, several times as fast."""

def release_rows(array: mx.array, rows: int) -> int:
    """Give the memory behind the first `rows` rows of `array` back (Linux, arrays on the CPU).

    Whole pages alone: up to one page of the rows that leave stays. The array lives on; what was given back
    reads as zeros, and takes memory again as it is written. As with reads, no graph not yet evaluated, or
    being evaluated, may refer to these rows.

    Returns:
        The bytes of the pages that were given back.

    Raises:
        TypeError: `array` is no mx.array.
        ValueError: it is lazy or strided, or has fewer rows.
        OSError: the system refused, as it does for locked memory, or has no such thing (ENOTSUP).
    """

def use_huge_pages(array: mx.array) -> int:
    """Have the memory of a fresh `array` put into huge pages (Linux, arrays on the CPU).

    Its values become zeros.

    Returns:
        The bytes that were asked for; 0 where the array is smaller than two huge pages or there are none.

    Raises:
        TypeError: `array` is no mx.array.
        ValueError: it is lazy or strided.
        OSError: there is not enough memory.
    """

def build_info() -> dict[str, str]:
    """How the extension was built.

    Keys: "version", "abi" (of the C interface), "compiler", "mlx" (the version built against), "crc32" (the
    implementation in use on this CPU), "direct_io" ("O_DIRECT" or "F_NOCACHE").
    """
