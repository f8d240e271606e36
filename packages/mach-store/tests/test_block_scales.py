import mlx.core as mx
import numpy as np
import pytest

from mach.io.safetensors_header import read_header
from mach_store.errors import PruneError
from mach_store.prune.block_scales import require_blocks, scale_of, widened
from mach_store.safetensors_writer import OutputTensor, write_safetensors


@pytest.fixture
def stored(tmp_path):
    """A function (name → (dtype, array of its bytes)) → entries of a safetensors file."""

    def make(**tensors: tuple[str, np.ndarray]):
        path = str(tmp_path / "model.safetensors")
        outputs = []
        for name, (dtype, array) in tensors.items():
            chunks = [array.tobytes()]
            outputs.append(
                OutputTensor(name=name, dtype=dtype, shape=array.shape, nbytes=array.nbytes, chunks=chunks)
            )
        write_safetensors(path, outputs)
        return read_header(path)

    return make


@pytest.mark.parametrize("scale_dtype", ["F32", "BF16", "F8_E8M0"])
@pytest.mark.parametrize("kept", [None, (0, 3, 4, 9)])
def test_widened_weights_are_the_products_in_bfloat16(stored, scale_dtype, kept) -> None:
    random = np.random.default_rng(3)
    rows, columns, block = 10, 13, (4, 8)
    codes = random.integers(0, 256, (rows, columns)).astype(np.uint8)
    codes[(codes & 127) == 127] = 0
    if scale_dtype == "F8_E8M0":
        raw = random.integers(120, 130, (3, 2)).astype(np.uint8)
        scales = 2.0 ** (raw.astype(np.float32) - 127)
    elif scale_dtype == "BF16":
        raw = random.integers(0x3C00, 0x3F00, (3, 2)).astype(np.uint16)
        scales = (raw.astype(np.uint32) << 16).view(np.float32)
    else:
        scales = raw = random.uniform(0.001, 2, (3, 2)).astype(np.float32)
    entries = stored(w=("F8_E4M3", codes), s=(scale_dtype, raw))
    require_blocks("w", entries["w"], entries["s"], block)
    data = b"".join(widened(entries["w"], entries["s"], block, kept))
    # MLX decodes e4m3 and rounds to bfloat16 by itself.
    values = mx.from_fp8(mx.array(codes), mx.float32)
    wide = np.kron(scales, np.ones(block, np.float32))[:rows, :columns]
    expected = np.array((values * mx.array(wide)).astype(mx.bfloat16).view(mx.uint16))
    if kept is not None:
        expected = expected[list(kept)]
    assert np.frombuffer(data, np.uint16).reshape(expected.shape).tolist() == expected.tolist()


def test_scales_are_found_under_both_names() -> None:
    names = dict.fromkeys(("a.weight", "a.weight_scale_inv", "b.weight", "b.scale", "c.weight"))
    assert scale_of("a.weight", names) == "a.weight_scale_inv"
    assert scale_of("b.weight", names) == "b.scale"
    assert scale_of("c.weight", names) is None


def test_scales_that_do_not_fit_are_refused(stored) -> None:
    codes = np.zeros((10, 13), np.uint8)
    entries = stored(
        w=("F8_E4M3", codes), s=("F32", np.zeros((2, 2), np.float32)), i=("I32", np.zeros((3, 2), np.int32))
    )
    with pytest.raises(
        PruneError, match=r"scales of w are F32 \[2, 2\], but blocks of 4 x 8 make them \[3, 2\]"
    ):
        require_blocks("w", entries["w"], entries["s"], (4, 8))
    with pytest.raises(PruneError, match="scales of w are I32"):
        require_blocks("w", entries["w"], entries["i"], (4, 8))
    with pytest.raises(PruneError, match=r"s \(F32 \[2, 2\]\) is not an fp8 matrix"):
        require_blocks("s", entries["s"], entries["w"], (4, 8))


def test_a_scale_that_is_no_number_is_refused(stored) -> None:
    entries = stored(
        w=("F8_E4M3", np.zeros((4, 8), np.uint8)), s=("F32", np.full((1, 1), np.nan, np.float32))
    )
    with pytest.raises(PruneError, match="no finite number"):
        list(widened(entries["w"], entries["s"], (4, 8)))
