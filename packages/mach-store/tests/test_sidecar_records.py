import json

import pytest

from mach.io.inspection import inspect_checkpoint
from mach.io.sidecar_layout import SidecarLayoutError
from mach_store.errors import SidecarCorruptionError
from mach_store.prune.sidecar_records import SidecarRecords
from mach_store.sidecar.expert_records import open_records


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("experts", [None, (1, 4, 5)])
def test_records_are_those_of_the_stacked_form(checkpoints, family, experts) -> None:
    mine = SidecarRecords(inspect_checkpoint(checkpoints.engine(family)))
    stacked = open_records(inspect_checkpoint(checkpoints.stacked(family)), None)
    assert mine.num_experts == stacked.num_experts
    assert mine.schemas == stacked.schemas
    for layer in mine.schemas:
        found = [b"".join(record) for record in mine.records(layer, experts)]
        assert found == [b"".join(record) for record in stacked.records(layer, experts)]


def test_a_corrupt_record_is_an_error_that_names_it(checkpoints, copy_checkpoint) -> None:
    directory = copy_checkpoint(checkpoints.engine())
    records = SidecarRecords(inspect_checkpoint(directory))
    path = directory / "expert_sidecar" / "layer_01.bin"
    raw = bytearray(path.read_bytes())
    stride = len(raw) // 8
    raw[3 * stride + 9] ^= 1
    path.write_bytes(raw)
    assert len(list(records.records(1, (0, 2, 4)))) == 3
    with pytest.raises(SidecarCorruptionError, match="layer 1, expert 3: checksum") as caught:
        list(records.records(1))
    assert (caught.value.layer, caught.value.expert) == (1, 3)


def test_a_sidecar_of_another_model_is_refused(checkpoints, copy_checkpoint) -> None:
    directory = copy_checkpoint(checkpoints.engine())
    fields = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(fields | {"num_experts": 9}))
    with pytest.raises(SidecarLayoutError, match="has 8 experts, not config.json's 9"):
        SidecarRecords(inspect_checkpoint(directory))
    (directory / "expert_sidecar" / "layer_00.bin").unlink()
    with pytest.raises(SidecarLayoutError, match="cannot be opened"):
        SidecarRecords(inspect_checkpoint(directory))
