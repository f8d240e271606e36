import os

import pytest

from mach.errors import UnsupportedLayoutError
from mach.io.inspection import inspect_checkpoint
from mach_store.engine_checkpoint import write_engine_checkpoint, write_stacked_checkpoint
from mach_store.errors import SidecarCorruptionError


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4", "deepseek_v4"])
def test_stacking_and_slicing_give_the_same_checkpoint_back(checkpoints, tmp_path, family) -> None:
    engine = checkpoints.engine(family)
    stacked = checkpoints.stacked(family)
    assert inspect_checkpoint(stacked).layout == "stacked"
    write_engine_checkpoint(stacked, tmp_path / "again", alignment=4096)
    inspection = inspect_checkpoint(tmp_path / "again")
    assert inspection.layout == "sliced"
    for name in os.listdir(engine / "expert_sidecar"):
        again = (tmp_path / "again" / "expert_sidecar" / name).read_bytes()
        assert again == (engine / "expert_sidecar" / name).read_bytes()
    original = inspect_checkpoint(engine)
    assert set(inspection.tensors) == set(original.tensors)
    for name, entry in inspection.tensors.items():
        other = original.tensors[name]
        assert (entry.dtype, entry.shape) == (other.dtype, other.shape)
        with open(entry.file, "rb") as mine, open(other.file, "rb") as theirs:
            mine.seek(entry.start)
            theirs.seek(other.start)
            assert mine.read(entry.nbytes) == theirs.read(other.nbytes)
    assert (tmp_path / "again" / "config.json").read_bytes() == (engine / "config.json").read_bytes()


def test_a_checkpoint_without_a_sidecar_cannot_be_stacked(checkpoints, tmp_path) -> None:
    with pytest.raises(UnsupportedLayoutError, match="no expert sidecar"):
        write_stacked_checkpoint(checkpoints.stacked(), tmp_path / "out")


def test_a_corrupt_record_is_not_copied_to_where_no_checksum_guards_it(
    checkpoints, copy_checkpoint, tmp_path
) -> None:
    directory = copy_checkpoint(checkpoints.engine())
    path = directory / "expert_sidecar" / "layer_01.bin"
    raw = bytearray(path.read_bytes())
    raw[5] ^= 1
    path.write_bytes(raw)
    with pytest.raises(SidecarCorruptionError, match="layer 1, expert 0") as caught:
        write_stacked_checkpoint(directory, tmp_path / "out")
    assert (caught.value.layer, caught.value.expert) == (1, 0)
    assert not (tmp_path / "out").exists()
