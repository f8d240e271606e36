import os
import random
import zlib

import pytest

import liblme_expert_io
import lme_mlx_pread_ext

NAMES = liblme_expert_io.crc32_implementations()


def test_the_table_is_always_there_and_last() -> None:
    assert NAMES[-1] == "table"
    assert lme_mlx_pread_ext.build_info()["crc32"] == NAMES[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_length_up_to_three_blocks_equals_zlib(name: str) -> None:
    data = os.urandom(300)
    for size in range(len(data)):
        assert liblme_expert_io.crc32_with(NAMES.index(name), data[:size]) == zlib.crc32(data[:size]), size


@pytest.mark.parametrize("name", NAMES)
def test_random_lengths_alignments_and_starts_equal_zlib(name: str) -> None:
    dice = random.Random(1)
    data = bytearray(dice.randbytes(1 << 17))
    for _ in range(400):
        first = dice.randrange(64)
        size = int(2 ** dice.uniform(0, 16.9))
        value = dice.getrandbits(32)
        part = memoryview(data)[first : first + size]
        assert liblme_expert_io.crc32_with(NAMES.index(name), part, value) == zlib.crc32(part, value)


@pytest.mark.parametrize("name", NAMES)
def test_parts_may_be_added_one_by_one(name: str) -> None:
    dice = random.Random(2)
    data = dice.randbytes(50_000)
    value, at = 0, 0
    while at < len(data):
        size = dice.choice((1, 7, 63, 64, 65, 1000, 4097))
        value = liblme_expert_io.crc32_with(NAMES.index(name), data[at : at + size], value)
        at += size
    assert value == zlib.crc32(data)


@pytest.mark.parametrize("crc32", [lme_mlx_pread_ext.crc32, liblme_expert_io.crc32])
def test_both_doors_take_any_contiguous_buffer(crc32) -> None:
    data = os.urandom(200_000)
    for buffer in (
        data,
        bytearray(data),
        memoryview(data),
        memoryview(bytearray(data))[5:],
        b"",
        bytearray(),
    ):
        assert crc32(buffer) == zlib.crc32(buffer)
        assert crc32(buffer, 12345) == zlib.crc32(buffer, 12345)


def test_a_start_value_beyond_32_bits_is_refused() -> None:
    with pytest.raises(TypeError):
        lme_mlx_pread_ext.crc32(b"", 1 << 32)
    with pytest.raises(ValueError, match="32 bits"):
        liblme_expert_io.crc32(b"", 1 << 32)


def test_a_strided_buffer_is_refused() -> None:
    with pytest.raises(BufferError):
        lme_mlx_pread_ext.crc32(memoryview(bytes(100))[::2])
