import os

import pytest

from mach.io.sidecar_layout import SidecarLayoutError, read_layout
from mach_store.sidecar.verification import verify_sidecar


@pytest.fixture
def sidecar(copy_checkpoint, checkpoints):
    return copy_checkpoint(checkpoints.engine()) / "expert_sidecar"


def flip(path, at: int) -> None:
    with open(path, "r+b") as handle:
        handle.seek(at)
        byte = handle.read(1)[0]
        handle.seek(at)
        handle.write(bytes([byte ^ 0x40]))


def test_an_intact_sidecar_has_no_bad_record(sidecar) -> None:
    seen = []
    assert verify_sidecar(str(sidecar), lambda done, total: seen.append((done, total))) == []
    assert seen == [(1, 2), (2, 2)]


def test_every_flipped_bit_is_found_and_named(sidecar) -> None:
    layer = read_layout(sidecar).layers[1]
    for expert in (0, 3, 7):
        flip(sidecar / layer.file, expert * layer.stride + layer.schema.nbytes - 1)
    bad = verify_sidecar(str(sidecar))
    assert [(record.layer, record.expert) for record in bad] == [(1, 0), (1, 3), (1, 7)]
    assert str(bad[1]) == f"{sidecar / layer.file}: layer 1, expert 3: checksum does not match"


def test_padding_is_nobodys_bytes(sidecar) -> None:
    layer = read_layout(sidecar).layers[0]
    assert layer.stride > layer.schema.nbytes
    flip(sidecar / layer.file, layer.stride - 1)
    assert verify_sidecar(str(sidecar)) == []


def test_a_truncated_file_is_bad_from_its_first_incomplete_expert_on(sidecar) -> None:
    layer = read_layout(sidecar).layers[0]
    os.truncate(sidecar / layer.file, 5 * layer.stride + 3)
    (bad,) = verify_sidecar(str(sidecar))
    assert (bad.layer, bad.expert, bad.problem) == (0, 5, "the file ends here")


def test_a_missing_file_and_one_that_is_too_long_are_found(sidecar) -> None:
    os.unlink(sidecar / "layer_00.bin")
    with open(sidecar / "layer_01.bin", "ab") as handle:
        handle.write(b"x")
    missing, long = verify_sidecar(str(sidecar))
    assert (missing.layer, missing.problem) == (0, "cannot be read (No such file or directory)")
    assert (long.layer, long.problem) == (1, "the file goes on after its last expert")


def test_without_a_layout_there_is_nothing_to_verify(tmp_path) -> None:
    with pytest.raises(SidecarLayoutError, match=r"layout.json: cannot be read .*export"):
        verify_sidecar(str(tmp_path))
