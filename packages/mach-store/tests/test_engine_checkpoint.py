import os

import pytest

from mach.errors import UnsupportedLayoutError
from mach_store.engine_checkpoint import write_stacked_checkpoint
from mach_store.errors import SidecarCorruptionError
from mach_store.prune.pruner import prune_checkpoint


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


def test_a_pruned_checkpoint_is_stacked_without_the_sign_that_mach_prune_made_it(
    checkpoints, tmp_path
) -> None:
    prune_checkpoint(checkpoints.stacked(), tmp_path / "engine")
    (tmp_path / "engine" / "chat_template.jinja").write_text("x")
    write_stacked_checkpoint(tmp_path / "engine", tmp_path / "stacked")
    expected = {*os.listdir(checkpoints.stacked()), "chat_template.jinja"}
    assert set(os.listdir(tmp_path / "stacked")) == expected
