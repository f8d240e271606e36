import errno
import io
import os
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from mach.errors import CheckpointError
from mach.io.sidecar_layout import Quantization, read_layout
from mach_store.errors import SidecarExportError
from mach_store.sidecar import sidecar_writer
from mach_store.sidecar.export import export_sidecar
from mach_store.sidecar.raw_records import RawRecords
from mach_store.sidecar.verification import verify_sidecar

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def raw_weights(config, dtype: mx.Dtype = mx.bfloat16) -> dict[str, mx.array]:
    """A raw qwen3_moe checkpoint's experts, one tensor per expert and projection."""
    hidden, width = config["hidden_size"], config["moe_intermediate_size"]
    return {
        f"model.layers.{layer}.mlp.experts.{expert}.{projection}.weight": mx.random.normal(
            (hidden, width) if projection == "down_proj" else (width, hidden),
            key=mx.random.key(1000 * layer + 10 * expert + i),
        ).astype(dtype)
        for layer in range(config["num_hidden_layers"])
        for expert in range(config["num_experts"])
        for i, projection in enumerate(PROJECTIONS)
    }


@pytest.fixture
def raw(tmp_path, config, write_checkpoint):
    """A function (changed fields) → directory and tensors of a raw per-expert checkpoint."""

    def make(dtype: mx.Dtype = mx.bfloat16, **changes):
        fields = config(quantization="none") | changes
        tensors = raw_weights(fields, dtype)
        return write_checkpoint(fields, tensors), tensors

    return make


def segment_of(directory, layer: int, expert: int, name: str) -> bytes:
    record = read_layout(directory).layer(layer)
    segment = next(s for s in record.schema.segments if s.name == name)
    raw = (directory / record.file).read_bytes()
    start = expert * record.stride + segment.offset
    return raw[start : start + segment.nbytes]


def as_bytes(array: mx.array) -> bytes:
    plain = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return np.array(plain).tobytes()


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
def test_a_raw_checkpoint_is_exported_byte_for_byte_without_bits(raw, tmp_path, dtype) -> None:
    directory, tensors = raw(dtype)
    layout = export_sidecar(directory, tmp_path / "out")
    assert [layer.schema.quantization for layer in layout.layers] == [(None, None, None)] * 2
    for layer, expert, projection in ((0, 0, "gate_proj"), (1, 7, "down_proj"), (1, 3, "up_proj")):
        name = f"model.layers.{layer}.mlp.experts.{expert}.{projection}.weight"
        assert segment_of(tmp_path / "out", layer, expert, f"{projection}.weight") == as_bytes(tensors[name])
    assert verify_sidecar(str(tmp_path / "out")) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(bits=4), Quantization(mode="affine", bits=4, group_size=64)),
        (dict(bits=8, group_size=32), Quantization(mode="affine", bits=8, group_size=32)),
        (dict(bits=2, group_size=32), Quantization(mode="affine", bits=2, group_size=32)),
        (dict(bits=4, mode="mxfp4"), Quantization(mode="mxfp4", bits=4, group_size=32)),
        (dict(bits=4, mode="nvfp4"), Quantization(mode="nvfp4", bits=4, group_size=16)),
    ],
)
def test_a_raw_checkpoint_is_packed_as_mlx_packs_it(raw, tmp_path, options, expected) -> None:
    directory, tensors = raw()
    layout = export_sidecar(directory, tmp_path / "out", **options)
    assert layout.layers[0].schema.quantization == (expected,) * 3
    name = "model.layers.1.mlp.experts.5.down_proj.weight"
    packed = mx.quantize(tensors[name], expected.group_size, expected.bits, mode=expected.mode)
    for component, array in zip(("weight", "scales", "biases"), packed, strict=False):
        assert segment_of(tmp_path / "out", 1, 5, f"down_proj.{component}") == as_bytes(array)


@pytest.mark.parametrize("quantization", ["affine", "mxfp4"])
@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4"])
def test_a_stacked_checkpoint_gives_back_the_sidecar_it_was_made_from(
    checkpoints, tmp_path, family, quantization
) -> None:
    original = checkpoints.engine(family, quantization) / "expert_sidecar"
    stacked = checkpoints.stacked(family, quantization)
    export_sidecar(stacked, tmp_path / "out", num_experts=8, alignment=4096)
    assert sorted(os.listdir(original)) == sorted(os.listdir(tmp_path / "out"))
    for name in os.listdir(original):
        assert (tmp_path / "out" / name).read_bytes() == (original / name).read_bytes()


def test_plain_stacked_experts_can_be_packed_and_packed_ones_asked_for_as_they_are(
    checkpoints, tmp_path
) -> None:
    plain = export_sidecar(checkpoints.stacked(quantization="none"), tmp_path / "a", bits=4)
    assert plain.layers[0].schema.quantization[0] == Quantization(mode="affine", bits=4, group_size=64)
    same = export_sidecar(
        checkpoints.stacked(), tmp_path / "b", bits=4, group_size=32, mode="affine", alignment=4096
    )
    assert same == read_layout(checkpoints.engine() / "expert_sidecar")
    assert export_sidecar(checkpoints.stacked(), tmp_path / "c", bits=4, alignment=4096) == same


@pytest.mark.parametrize("options", [dict(bits=8), dict(bits=4, mode="mxfp4"), dict(bits=4, group_size=64)])
def test_packed_experts_are_not_packed_again(checkpoints, tmp_path, options) -> None:
    with pytest.raises(SidecarExportError, match="already packed .affine, 4 bits, groups of 32"):
        export_sidecar(checkpoints.stacked(), tmp_path / "out", **options)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("options", [dict(group_size=32), dict(mode="mxfp4")])
def test_how_to_pack_is_not_silently_ignored_without_bits(raw, tmp_path, options) -> None:
    directory, _ = raw()
    with pytest.raises(SidecarExportError, match="--bits"):
        export_sidecar(directory, tmp_path / "out", **options)


def test_what_mlx_cannot_pack_is_a_clear_error(raw, tmp_path) -> None:
    directory, _ = raw()
    with pytest.raises(SidecarExportError, match="cannot be packed with mode mxfp4, 8 bits, groups of 32"):
        export_sidecar(directory, tmp_path / "out", bits=8, mode="mxfp4")


def test_a_wrong_number_of_experts_is_refused(raw, tmp_path) -> None:
    directory, _ = raw()
    with pytest.raises(SidecarExportError, match="has 8 experts per layer, not 256"):
        export_sidecar(directory, tmp_path / "out", num_experts=256)
    assert not (tmp_path / "out.partial").exists()


def test_a_width_that_is_no_multiple_of_the_group_is_refused(raw, tmp_path) -> None:
    directory, _ = raw(moe_intermediate_size=48)
    with pytest.raises(SidecarExportError, match="layer 0: down_proj has 48 inputs, not a multiple of .* 64"):
        export_sidecar(directory, tmp_path / "out", bits=4)


@pytest.mark.parametrize("layout", ["sliced", "missing expert"])
def test_experts_that_cannot_be_read_one_by_one_are_refused(
    checkpoints, config, write_checkpoint, tmp_path, layout
) -> None:
    if layout == "sliced":
        directory = checkpoints.engine()
    else:
        tensors = raw_weights(config(quantization="none"))
        del tensors["model.layers.1.mlp.experts.6.up_proj.weight"]
        directory = write_checkpoint(config(quantization="none"), tensors)
    with pytest.raises(SidecarExportError, match="layer 1, expert 6 has no up_proj|sliced layout"):
        export_sidecar(directory, tmp_path / "out")


def test_an_expert_of_another_shape_or_dtype_is_refused_and_nothing_is_left_under_the_name(
    config, write_checkpoint, tmp_path
) -> None:
    tensors = raw_weights(config(quantization="none"))
    name = "model.layers.1.mlp.experts.6.up_proj.weight"
    tensors[name] = tensors[name].astype(mx.float16)
    directory = write_checkpoint(config(quantization="none"), tensors)
    with pytest.raises(SidecarExportError, match="layer 1, expert 6: .*up_proj.weight is F16, not BF16"):
        export_sidecar(directory, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_none_is_a_checkpoint_error(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        export_sidecar(tmp_path / "nothing", tmp_path / "out")


def test_a_source_that_changed_is_not_mixed_with_what_was_exported_before(
    raw, tmp_path, write_checkpoint, config, monkeypatch
) -> None:
    directory, tensors = raw()

    def interrupted(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_sidecar(directory, tmp_path / "out", progress=interrupted)
    changed = {name: array + 1 for name, array in tensors.items()}
    write_checkpoint(config(quantization="none"), changed)
    os.utime(directory / "model.safetensors", ns=(1, 1))
    export_sidecar(directory, tmp_path / "out")
    name = "model.layers.0.mlp.experts.0.gate_proj.weight"
    assert segment_of(tmp_path / "out", 0, 0, "gate_proj.weight") == as_bytes(changed[name])


def test_an_interrupted_export_with_the_same_source_reads_only_the_rest(raw, tmp_path, monkeypatch) -> None:
    directory, _ = raw()

    def interrupted(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_sidecar(directory, tmp_path / "out", progress=interrupted)
    asked: list[int] = []
    records = RawRecords.records
    monkeypatch.setattr(
        RawRecords,
        "records",
        lambda self, layer: (asked.append(layer), records(self, layer))[1],
    )
    export_sidecar(directory, tmp_path / "out")
    assert asked == [1]


class FullDisk(io.BufferedWriter):
    """A file on a disk with room for `room` bytes in all."""

    room = 0

    def write(self, data) -> int:
        type(self).room -= memoryview(data).nbytes
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.raw.name))
        return super().write(data)


@pytest.mark.parametrize("share", [0.1, 0.6, 0.99])
def test_a_full_disk_leaves_the_layers_that_are_done_and_a_rerun_does_the_rest(
    raw, tmp_path, monkeypatch, share
) -> None:
    directory, _ = raw()
    whole = export_sidecar(directory, tmp_path / "whole")

    def full_disk_open(path, mode, **_):
        if mode == "wb" and str(path).endswith(".bin.tmp"):
            return FullDisk(io.FileIO(path, mode))
        return open(path, mode)

    FullDisk.room = int(share * sum(layer.file_bytes for layer in whole.layers))
    asked: list[int] = []
    records = RawRecords.records
    with monkeypatch.context() as patch:
        patch.setattr(sidecar_writer, "open", full_disk_open, raising=False)
        with pytest.raises(SidecarExportError, match=f"{os.strerror(errno.ENOSPC)}; the layers done so far"):
            export_sidecar(directory, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["out.partial", "whole"]
    done = [name for name in os.listdir(tmp_path / "out.partial") if name.endswith(".bin")]
    assert len(done) == int(share * 2)
    assert not [name for name in os.listdir(tmp_path / "out.partial") if name.endswith(".tmp")]
    monkeypatch.setattr(
        RawRecords, "records", lambda self, layer: (asked.append(layer), records(self, layer))[1]
    )
    assert export_sidecar(directory, tmp_path / "out") == whole
    assert asked == [0, 1][len(done) :]
    assert verify_sidecar(str(tmp_path / "out")) == []


def test_a_file_size_limit_leaves_a_clear_error_and_nothing_under_the_final_name(raw, tmp_path) -> None:
    directory, _ = raw()
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from mach_store.sidecar.export import export_sidecar\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))\n"
        "export_sidecar(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(directory), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "SidecarExportError" in result.stderr.splitlines()[-1]
    assert os.strerror(errno.EFBIG) in result.stderr
    assert not (tmp_path / "out").exists()
    export_sidecar(directory, tmp_path / "out")
    assert verify_sidecar(str(tmp_path / "out")) == []
