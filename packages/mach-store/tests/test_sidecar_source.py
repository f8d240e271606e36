import json
import os
import sys

import pytest

from mach.io.sidecar_layout import SidecarLayoutError, read_layout
from mach_store.sidecar.sidecar_source import SidecarSource


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0


@pytest.fixture
def sidecar(copy_checkpoint, checkpoints):
    return copy_checkpoint(checkpoints.engine()) / "expert_sidecar"


def test_records_lie_where_the_layout_says(sidecar) -> None:
    source = SidecarSource(str(sidecar))
    layout = read_layout(sidecar)
    assert (source.num_experts, sorted(source.schemas)) == (8, [0, 1])
    where = source.locate(1, [7, 2])
    stride = layout.layers[1].stride
    assert list(where.offsets) == [7 * stride, 2 * stride]
    assert where.crcs == [layout.layers[1].checksums[7], layout.layers[1].checksums[2]]
    assert (
        os.pread(where.fds[0], 16, where.offsets[0])
        == (sidecar / "layer_01.bin").read_bytes()[7 * stride : 7 * stride + 16]
    )
    assert source.path_of(1, 0, 0) == str(sidecar / "layer_01.bin")
    source.close()


def test_without_verification_no_checksums_are_handed_out(sidecar) -> None:
    source = SidecarSource(str(sidecar), verify=False)
    assert source.locate(0, [0]).crcs is None
    source.close()


def test_closing_twice_is_harmless_and_leaves_no_descriptor(sidecar) -> None:
    before = open_descriptors()
    source = SidecarSource(str(sidecar))
    source.close()
    source.close()
    assert open_descriptors() == before


@pytest.mark.parametrize("damage", ["truncated", "too long", "missing"])
def test_a_file_whose_size_contradicts_the_layout_is_refused(sidecar, damage) -> None:
    path = sidecar / "layer_01.bin"
    stride = read_layout(sidecar).layers[1].stride
    if damage == "truncated":
        os.truncate(path, 6 * stride + 1)
        message = r"layer_01.bin: truncated: .* layer 1, expert 6 and those after it"
    elif damage == "too long":
        os.truncate(path, 8 * stride + 1)
        message = r"layer_01.bin: .*layer 1 with 8 experts"
    else:
        path.unlink()
        message = r"layer_01.bin: layer 1 is declared .* export the sidecar again"
    before = open_descriptors()
    with pytest.raises(SidecarLayoutError, match=message):
        SidecarSource(str(sidecar))
    assert open_descriptors() == before


def test_layers_with_different_numbers_of_experts_are_refused(sidecar) -> None:
    document = json.loads((sidecar / "layout.json").read_bytes())
    layer = document["layers"][1]
    layer["num_experts"] = 7
    layer["checksums"].pop()
    (sidecar / "layout.json").write_text(json.dumps(document))
    os.truncate(sidecar / "layer_01.bin", 7 * layer["record_stride"])
    with pytest.raises(SidecarLayoutError, match=r"different numbers of experts \(\[7, 8\]\)"):
        SidecarSource(str(sidecar))
