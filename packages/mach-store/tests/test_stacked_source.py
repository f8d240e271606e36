import os
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mach.io.inspection import inspect_checkpoint
from mach_store.bank_cache import BankCache
from mach_store.errors import ExpertReadError
from mach_store.sidecar.sidecar_source import SidecarSource
from mach_store.stacked_source import StackedSource


@pytest.mark.parametrize("quantization", ["affine", "mxfp4", "none"])
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_slices_of_a_stacked_checkpoint_are_the_records_of_its_sidecar(
    checkpoints, native_reader, family, quantization
) -> None:
    stacked = StackedSource(inspect_checkpoint(checkpoints.stacked(family, quantization)))
    sidecar = SidecarSource(str(checkpoints.engine(family, quantization) / "expert_sidecar"))
    assert stacked.schemas == sidecar.schemas
    assert stacked.num_experts == sidecar.num_experts
    arrays = []
    for source in (stacked, sidecar):
        bank = BankCache(source, native_reader, budget_bytes=1 << 24, top_k=2, compute=mx.float32)
        bank.prewarm()
        arrays.append(
            {
                (layer, projection, component): np.array(array)
                for layer, view in bank.layers.items()
                for projection, parts in view.components.items()
                for component, array in parts.items()
            }
        )
        bank.close()
    assert arrays[0].keys() == arrays[1].keys()
    for key, array in arrays[0].items():
        assert np.array_equal(array, arrays[1][key]), key


def test_a_stacked_file_that_is_written_to_is_read_no_more(checkpoints, tmp_path, reader) -> None:
    copy = Path(shutil.copytree(checkpoints.stacked(), tmp_path / "copy"))
    source = StackedSource(inspect_checkpoint(copy))
    bank = BankCache(source, reader, budget_bytes=1 << 24, top_k=2, compute=mx.float32)
    layer = bank.layers[1]
    layer.acquire([0])
    path = Path(source.path_of(1, 0, 0))
    with path.open("r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        handle.write(b"x")
    with pytest.raises(
        ExpertReadError, match=rf"{path.name}: layer 1, expert 2: .* was written to"
    ) as caught:
        layer.acquire([0, 2])
    assert (caught.value.path, caught.value.layer, caught.value.expert) == (str(path), 1, 2)
    bank.abandon()
    bank.check()
    assert layer.resident([0, 2]) == [0]
    bank.close()


def test_a_stacked_checkpoint_has_no_checksums_and_names_its_file(checkpoints) -> None:
    source = StackedSource(inspect_checkpoint(checkpoints.stacked()))
    where = source.locate(1, [3])
    assert where.crcs is None
    assert len(where.fds) == len(where.offsets) == len(source.schemas[1].segments)
    assert os.path.basename(source.path_of(1, 0, 0)).startswith("model-experts-00001")
    source.close()
    source.close()
