import errno
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from mach.io.sidecar_layout import RecordSchema, check_files, read_layout
from mach_store.errors import SidecarExportError
from mach_store.sidecar import sidecar_writer
from mach_store.sidecar.sidecar_writer import PROGRESS_NAME, SidecarWriter
from mach_store.sidecar.verification import verify_sidecar


def records_of(schema: RecordSchema, layer: int, count: int = 3) -> list[list[bytes]]:
    return [
        [bytes([(layer * 50 + expert * 7 + i) % 256]) * s.nbytes for i, s in enumerate(schema.segments)]
        for expert in range(count)
    ]


def writer_for(output: Path, *, fingerprint: str = "f", alignment: int = 512) -> SidecarWriter:
    return SidecarWriter(str(output), model_type="qwen3_moe", alignment=alignment, fingerprint=fingerprint)


def write(output: Path, schema: RecordSchema, layers=(0, 1), **options) -> None:
    with writer_for(output, **options) as writer:
        for layer in layers:
            if layer not in writer.done:
                writer.write_layer(layer, schema, records_of(schema, layer))
        writer.finish()


def test_what_is_written_is_what_the_layout_says(tmp_path, schema) -> None:
    output = tmp_path / "expert_sidecar"
    write(output, schema(), alignment=4096)
    layout = read_layout(output)
    check_files(layout, output)
    assert sorted(os.listdir(output)) == ["layer_00.bin", "layer_01.bin", "layout.json"]
    assert os.listdir(tmp_path) == ["expert_sidecar"]
    for layer in layout.layers:
        raw = (output / layer.file).read_bytes()
        assert layer.stride % 4096 == 0
        for expert, record in enumerate(records_of(schema(), layer.index)):
            start = expert * layer.stride
            assert raw[start : start + schema().nbytes] == b"".join(record)
            assert not any(raw[start + schema().nbytes : start + layer.stride])
            assert layer.checksums[expert] == zlib.crc32(b"".join(record))
    assert verify_sidecar(str(output)) == []


def test_the_same_records_give_the_same_bytes(tmp_path, schema) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, schema())
    for name in os.listdir(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_nothing_is_visible_under_the_final_name_before_the_end(tmp_path, schema) -> None:
    output = tmp_path / "sidecar"
    with writer_for(output) as writer:
        writer.write_layer(0, schema(), records_of(schema(), 0))
        assert not output.exists()
        writer.finish()
    assert output.is_dir()
    assert not (tmp_path / "sidecar.partial").exists()


def test_a_finished_export_replaces_an_old_sidecar_whole(tmp_path, schema) -> None:
    output = tmp_path / "sidecar"
    write(output, schema(), layers=(0, 1, 2))
    write(output, schema(64, 32), layers=(0, 1))
    assert sorted(os.listdir(output)) == ["layer_00.bin", "layer_01.bin", "layout.json"]
    assert read_layout(output).layers[0].schema == schema(64, 32)
    assert os.listdir(tmp_path) == ["sidecar"]
    assert verify_sidecar(str(output)) == []


def test_an_interrupted_export_is_resumed_where_it_stopped(tmp_path, schema) -> None:
    output = tmp_path / "sidecar"
    with pytest.raises(KeyboardInterrupt), writer_for(output) as writer:
        writer.write_layer(0, schema(), records_of(schema(), 0))
        raise KeyboardInterrupt
    assert not output.exists()
    with writer_for(output) as writer:
        assert writer.done == {0}
        writer.write_layer(1, schema(), records_of(schema(), 1))
        writer.finish()
    write(tmp_path / "at-once", schema())
    for name in os.listdir(output):
        assert (output / name).read_bytes() == (tmp_path / "at-once" / name).read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        "fingerprint",
        "alignment",
        "flipped bit",
        "truncated",
        "missing",
        "progress not JSON",
        "progress empty",
    ],
)
def test_only_whole_layers_of_the_same_export_are_resumed(tmp_path, schema, change) -> None:
    output, partial = tmp_path / "sidecar", tmp_path / "sidecar.partial"
    with writer_for(output) as writer:
        for layer in (0, 1):
            writer.write_layer(layer, schema(), records_of(schema(), layer))
    layer_file = partial / "layer_01.bin"
    options: dict = {}
    if change == "fingerprint":
        options["fingerprint"] = "another source"
    elif change == "alignment":
        options["alignment"] = 1024
    elif change == "flipped bit":
        raw = bytearray(layer_file.read_bytes())
        raw[700] ^= 16
        layer_file.write_bytes(raw)
    elif change == "truncated":
        os.truncate(layer_file, 100)
    elif change == "missing":
        layer_file.unlink()
    elif change == "progress not JSON":
        (partial / PROGRESS_NAME).write_text("{")
    else:
        (partial / PROGRESS_NAME).write_text("{}")
    with writer_for(output, **options) as writer:
        kept = {0} if change in ("flipped bit", "truncated", "missing") else set()
        assert writer.done == kept
    write(output, schema(), **options)
    assert verify_sidecar(str(output)) == []


def test_two_exports_at_once_are_refused_and_the_first_goes_on(tmp_path, schema) -> None:
    output = tmp_path / "sidecar"
    with writer_for(output) as first:
        first.write_layer(0, schema(), records_of(schema(), 0))
        with pytest.raises(SidecarExportError, match="another export is writing"):
            writer_for(output)
        code = (
            "import sys; from mach_store.sidecar.sidecar_writer import SidecarWriter\n"
            "SidecarWriter(sys.argv[1], model_type='qwen3_moe', alignment=512, fingerprint='f')"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, str(output)], capture_output=True, text=True, check=False
        )
        assert "another export is writing" in other.stderr
        first.finish()
    assert verify_sidecar(str(output)) == []
    write(output, schema())


def test_a_lock_left_by_a_killed_export_does_not_block_the_next(tmp_path, schema) -> None:
    output = tmp_path / "sidecar"
    (tmp_path / "sidecar.partial.lock").touch()
    write(output, schema())
    assert os.listdir(tmp_path) == ["sidecar"]


def test_large_records_have_the_checksums_of_small_ones(tmp_path, schema) -> None:
    large = schema(1024, 256, packed=False)
    output = tmp_path / "sidecar"
    write(output, large, layers=(0,))
    for expert, record in enumerate(records_of(large, 0)):
        assert read_layout(output).layers[0].checksums[expert] == zlib.crc32(b"".join(record))


def test_a_segment_of_the_wrong_size_is_refused(tmp_path, schema) -> None:
    records = records_of(schema(), 0)
    records[1][2] += b"x"
    with (
        writer_for(tmp_path / "sidecar") as writer,
        pytest.raises(SidecarExportError, match="layer 0, expert 1: gate_proj.biases has"),
    ):
        writer.write_layer(0, schema(), records)
    assert not (tmp_path / "sidecar").exists()


@pytest.mark.parametrize("alignment", [0, -512, 3, 1000])
def test_an_alignment_that_is_no_power_of_two_is_refused(tmp_path, alignment) -> None:
    with pytest.raises(SidecarExportError, match="power of two"):
        writer_for(tmp_path / "sidecar", alignment=alignment)


def test_an_export_without_layers_is_refused(tmp_path) -> None:
    with writer_for(tmp_path / "sidecar") as writer, pytest.raises(SidecarExportError, match="no layer"):
        writer.finish()


class FullDisk:
    """A file whose disk fills up after `room` bytes."""

    def __init__(self, file, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 1000, 5000])
def test_a_full_disk_is_a_clear_error_and_the_finished_layers_are_kept(
    tmp_path, schema, monkeypatch, room
) -> None:
    output = tmp_path / "sidecar"
    write(output, schema(64, 32))
    old = {name: (output / name).read_bytes() for name in os.listdir(output)}
    with writer_for(output, fingerprint="g") as writer:
        writer.write_layer(0, schema(), records_of(schema(), 0))
        with monkeypatch.context() as patch:
            # Layer 0 may still be on its way to the disk: it is to find room.
            patch.setattr(
                sidecar_writer,
                "open",
                lambda path, *a, **k: (
                    FullDisk(open(path, *a, **k), room) if "layer_01" in path else open(path, *a, **k)
                ),
                raising=False,
            )
            with pytest.raises(SidecarExportError, match="No space left on device.*goes on from them"):
                writer.write_layer(1, schema(), records_of(schema(), 1))
    assert {name: (output / name).read_bytes() for name in os.listdir(output)} == old
    with writer_for(output, fingerprint="g") as writer:
        assert 0 in writer.done
    write(output, schema(), fingerprint="g")
    assert verify_sidecar(str(output)) == []
    assert read_layout(output).layers[0].schema == schema()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which file is synced")
def test_a_layer_counts_once_it_is_on_the_disk_and_not_before(tmp_path, schema, monkeypatch) -> None:
    output = tmp_path / "sidecar"
    real = os.fsync

    def failing(fd: int) -> None:
        if "layer_01" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fsync", failing)
    with writer_for(output) as writer:
        writer.write_layer(0, schema(), records_of(schema(), 0))
        writer.write_layer(1, schema(), records_of(schema(), 1))
        with pytest.raises(SidecarExportError, match="Input/output error.*goes on from them"):
            writer.finish()
        assert writer.done == {0}
    assert not output.exists()
    monkeypatch.undo()
    with writer_for(output) as writer:
        assert writer.done == {0}
    write(output, schema())
    assert verify_sidecar(str(output)) == []


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SidecarExportError, match="cannot be written"):
        writer_for(tmp_path / "file" / "sidecar")
    (tmp_path / "taken.partial").write_text("")
    with pytest.raises(SidecarExportError, match="cannot be written"):
        writer_for(tmp_path / "taken")
    assert not (tmp_path / "taken.partial.lock").exists()


def test_a_trailing_slash_names_the_same_directory(tmp_path, schema) -> None:
    with SidecarWriter(f"{tmp_path}/sidecar/", model_type="gpt_oss", alignment=1, fingerprint="") as writer:
        writer.write_layer(3, schema(), records_of(schema(), 3))
        writer.finish()
    assert os.listdir(tmp_path) == ["sidecar"]
    document = json.loads((tmp_path / "sidecar" / "layout.json").read_bytes())
    assert (document["model_type"], document["layers"][0]["file"]) == ("gpt_oss", "layer_03.bin")


@pytest.mark.parametrize("kind", ["a checkpoint", "a file", "a link"])
def test_an_output_that_is_no_sidecar_is_refused_and_kept(tmp_path, kind) -> None:
    output = tmp_path / "precious"
    if kind == "a file":
        output.write_text("thesis")
    elif kind == "a link":
        (tmp_path / "elsewhere").mkdir()
        output.symlink_to(tmp_path / "elsewhere")
    else:
        output.mkdir()
        (output / "thesis.txt").write_text("thesis")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(SidecarExportError, match="precious: (holds thesis.txt|is not a directory)"):
        SidecarWriter(str(output), model_type="qwen3_moe", alignment=512, fingerprint="x")
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_an_empty_directory_may_become_a_sidecar(tmp_path) -> None:
    (tmp_path / "new").mkdir()
    SidecarWriter(str(tmp_path / "new"), model_type="qwen3_moe", alignment=512, fingerprint="x").__exit__(
        None, None, None
    )
