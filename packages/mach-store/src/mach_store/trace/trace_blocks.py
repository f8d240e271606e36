"""Owns the frame around the blocks of a trace: kind, number, sizes, checksum, compression; no contents."""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

MAGIC = b"MACHTRC\n"
HEAD = struct.Struct("<BBHIII")
"""kind, coding, 0, number, stored bytes, plain bytes."""
CHECKSUMS = struct.Struct("<II")
"""CRC-32 of these, so that a damaged size is not taken for the end of the file; and of the stored bytes."""
HEAD_BYTES = HEAD.size + CHECKSUMS.size
HEADER, EVENTS, ENDING = 1, 2, 3
PLAIN, DEFLATE = 0, 1
MAX_PLAIN_BYTES = 64 << 20
"""A block's largest size, and so what a reader allocates at most for a hostile one."""
_LEVEL = 6


class BlockHead(NamedTuple):
    """What stands before a block's bytes."""

    kind: int
    coding: int
    number: int
    stored: int
    plain: int
    checksum: int


def pack_block(kind: int, number: int, plain: bytes) -> bytes:
    """A block as it is written, compressed where that makes it smaller."""
    assert len(plain) <= MAX_PLAIN_BYTES, "whoever fills a block keeps it small"
    coding, stored = DEFLATE, zlib.compress(plain, _LEVEL)
    if len(stored) >= len(plain):
        coding, stored = PLAIN, plain
    head = HEAD.pack(kind, coding, 0, number, len(stored), len(plain))
    return head + CHECKSUMS.pack(zlib.crc32(head), zlib.crc32(stored)) + stored


def parse_head(head: bytes, number: int) -> BlockHead:
    """The head of block `number`.

    Raises:
        ValueError: it cannot be one; the message names the field.
    """
    kind, coding, zero, found, stored, plain = HEAD.unpack_from(head)
    own, checksum = CHECKSUMS.unpack_from(head, HEAD.size)
    if zlib.crc32(head[: HEAD.size]) != own:
        raise ValueError("head: its checksum does not match its bytes")
    if kind not in (HEADER, EVENTS, ENDING):
        raise ValueError(f"kind: {kind} is unknown")
    if coding not in (PLAIN, DEFLATE):
        raise ValueError(f"coding: {coding} is unknown")
    if zero:
        raise ValueError(f"reserved: is {zero} and not 0")
    if found != number:
        raise ValueError(f"number: is {found} and not {number}")
    if plain > MAX_PLAIN_BYTES or stored > plain or (coding == PLAIN and stored != plain):
        raise ValueError(f"sizes: {stored} bytes for {plain} cannot be; at most {MAX_PLAIN_BYTES}")
    return BlockHead(kind, coding, number, stored, plain, checksum)


def unpack_block(head: BlockHead, stored: bytes) -> bytes:
    """A block's plain bytes.

    Raises:
        ValueError: they are not those that were written; the message names the field.
    """
    if zlib.crc32(stored) != head.checksum:
        raise ValueError("bytes: their checksum does not match")
    if head.coding == PLAIN:
        return stored
    inflate = zlib.decompressobj()
    try:
        plain = inflate.decompress(stored, head.plain + 1)
    except zlib.error as error:
        raise ValueError(f"coding: the bytes cannot be inflated ({error})") from None
    if len(plain) != head.plain or not inflate.eof or inflate.unused_data or inflate.unconsumed_tail:
        raise ValueError(f"plain bytes: the block does not inflate to the {head.plain} bytes it declares")
    return plain
