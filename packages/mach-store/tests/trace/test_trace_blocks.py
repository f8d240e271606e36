import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mach_store.trace import trace_blocks as blocks


def opened(block: bytes, number: int) -> tuple[int, bytes]:
    head = blocks.parse_head(block[: blocks.HEAD_BYTES], number)
    stored = block[blocks.HEAD_BYTES :]
    assert head.stored == len(stored)
    return head.kind, blocks.unpack_block(head, stored)


@given(plain=st.binary(max_size=300) | st.builds(lambda n: b"ab" * n, st.integers(0, 300)))
def test_a_block_opens_to_what_was_packed_and_is_never_larger_than_it(plain) -> None:
    block = blocks.pack_block(blocks.EVENTS, 7, plain)
    assert len(block) <= blocks.HEAD_BYTES + len(plain)
    assert opened(block, 7) == (blocks.EVENTS, plain)


@pytest.mark.parametrize("plain", [b"abab" * 50, bytes(range(50))], ids=["deflated", "plain"])
def test_a_flipped_bit_anywhere_is_found(plain) -> None:
    block = blocks.pack_block(blocks.EVENTS, 3, plain)
    for at in range(8 * len(block)):
        damaged = bytearray(block)
        damaged[at // 8] ^= 1 << at % 8
        with pytest.raises(ValueError, match="checksum"):
            opened(bytes(damaged), 3)


def forged(kind=blocks.EVENTS, coding=0, zero=0, number=3, stored=b"", plain=None) -> bytes:
    head = blocks.HEAD.pack(kind, coding, zero, number, len(stored), len(stored) if plain is None else plain)
    return head + blocks.CHECKSUMS.pack(zlib.crc32(head), zlib.crc32(stored)) + stored


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": 0}, "kind: 0 is unknown"),
        ({"kind": 4}, "kind: 4 is unknown"),
        ({"coding": 2}, "coding: 2 is unknown"),
        ({"zero": 1}, "reserved: is 1 and not 0"),
        ({"number": 4}, "number: is 4 and not 3"),
        ({"plain": 5}, "sizes: 0 bytes for 5 cannot be"),
        ({"stored": b"abc", "plain": 2, "coding": 1}, "sizes: 3 bytes for 2 cannot be"),
        ({"coding": 1, "stored": b"x", "plain": blocks.MAX_PLAIN_BYTES + 1}, "sizes: .* at most 67108864"),
        ({"coding": 1, "stored": b"no deflate", "plain": 99}, "cannot be inflated"),
        ({"coding": 1, "stored": zlib.compress(b"a" * 99), "plain": 98}, "to the 98 bytes it declares"),
        ({"coding": 1, "stored": zlib.compress(b"a" * 99), "plain": 100}, "to the 100 bytes"),
        ({"coding": 1, "stored": zlib.compress(b"a" * 99) + b"more", "plain": 99}, "to the 99 bytes"),
        ({"coding": 1, "stored": zlib.compress(b"a" * 99)[:-2], "plain": 99}, "to the 99 bytes"),
    ],
)
def test_a_forged_block_is_refused_by_field(fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        opened(forged(**fields), 3)


def test_a_bomb_is_inflated_no_further_than_it_declares() -> None:
    bomb = zlib.compress(bytes(32 << 20))
    with pytest.raises(ValueError, match="does not inflate to the 65536 bytes"):
        opened(forged(coding=1, stored=bomb, plain=65536), 3)
