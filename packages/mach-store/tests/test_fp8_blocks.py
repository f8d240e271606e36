import itertools
import math
import struct

import numpy as np
import pytest

from mach_store.sidecar.fp8_blocks import E4M3, E8M0, decode_blocks, decode_scales


def e4m3(code: int) -> float:
    """One value from the format's definition: sign, four exponent bits with bias 7, three of mantissa."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code >> 3) & 0xF, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    if exponent == 0:
        return sign * math.ldexp(mantissa, -9)
    return sign * math.ldexp(8 + mantissa, exponent - 10)


def nearest_bfloat16(value: float) -> int:
    """The bit pattern of the bfloat16 next to a float32 value; of two as near, the even one."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    candidates = [bits >> 16, (bits >> 16) + 1]

    def as_float(pattern: int) -> float:
        return struct.unpack("<f", struct.pack("<I", pattern << 16))[0]

    return min(candidates, key=lambda p: (abs(as_float(p) - value), p & 1))


def test_every_code_has_the_value_of_the_formats_definition() -> None:
    for code in range(256):
        expected = e4m3(code)
        assert E4M3[code] == expected or (math.isnan(expected) and math.isnan(E4M3[code]))
    assert (E4M3[0x7E], E4M3[0x01], E4M3[0x08]) == (448.0, 2.0**-9, 2.0**-6)
    assert [E8M0[code] for code in (0, 127, 254)] == [2.0**-127, 1.0, 2.0**127]
    assert math.isnan(E8M0[255])


@pytest.mark.parametrize("shape", [(4, 6), (5, 7), (8, 12), (3, 3)])
@pytest.mark.parametrize("block", [(4, 4), (2, 6), (128, 128), (1, 1)])
def test_blocks_are_decoded_as_the_scalar_definition_says(shape, block) -> None:
    random = np.random.default_rng(3)
    rows, columns = shape
    finite = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)
    codes = random.choice(finite, shape)
    grid = (-(-rows // block[0]), -(-columns // block[1]))
    scales = random.uniform(-3, 3, grid).astype(np.float32)
    decoded = decode_blocks(codes, scales, block)
    assert decoded.dtype == np.uint16
    for row, column in itertools.product(range(rows), range(columns)):
        scale = scales[row // block[0], column // block[1]]
        product = float(np.float32(e4m3(int(codes[row, column]))) * scale)
        expected = nearest_bfloat16(product)
        assert decoded[row, column] == expected or product == 0.0 == (decoded[row, column] & 0x7FFF)


def test_what_is_no_number_stays_none_and_zero_keeps_its_sign() -> None:
    codes = np.array([[0x7F, 0xFF, 0x80, 0x00]], np.uint8)
    decoded = decode_blocks(codes, np.ones((1, 1), np.float32), (1, 4))
    assert decoded.tolist()[0][2:] == [0x8000, 0]
    assert all((pattern & 0x7F80) == 0x7F80 and pattern & 0x7F for pattern in decoded.tolist()[0][:2])


def test_scales_of_every_kind_are_widened_exactly() -> None:
    values = np.array([0.5, 1.0, 2.0**-20, 3.0], np.float32)
    bfloat16 = (values.view(np.uint32) >> 16).astype(np.uint16)
    assert decode_scales(values.view(np.uint8), "F32").tolist() == values.tolist()
    assert decode_scales(bfloat16.view(np.uint8), "BF16").tolist() == values.tolist()
    assert decode_scales(values.astype(np.float16).view(np.uint8), "F16").tolist() == values.tolist()
    powers = np.array([126, 127, 107], np.uint8)
    for dtype in ("F8_E8M0", "U8"):
        assert decode_scales(powers, dtype).tolist() == [0.5, 1.0, 2.0**-20]
