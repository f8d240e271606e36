import json
import os
import shutil
from pathlib import Path

import pytest

from mach_store.errors import PruneError, SidecarExportError
from mach_store.prune.output_directory import MARKER, OutputDirectory
from mach_store.sidecar.sidecar_writer import SidecarWriter


def write_sidecar(path: str, schema) -> None:
    with SidecarWriter(path, model_type="qwen3_moe", alignment=512, fingerprint="s") as writer:
        writer.write_layer(0, schema, [[bytes(segment.nbytes) for segment in schema.segments]])
        writer.finish()


@pytest.fixture
def output(tmp_path) -> str:
    return str(tmp_path / "there" / "out")


@pytest.fixture
def make(output, schema):
    """A function (fingerprint) that makes a whole output with one file, `a.txt`, and a sidecar."""

    def run(fingerprint: str = "f", *, overwrite: bool = False, text: str = "a") -> None:
        with OutputDirectory(output, fingerprint, overwrite=overwrite) as target:
            assert not target.complete
            target.begin()
            if not target.sidecar_done:
                write_sidecar(target.path("expert_sidecar"), schema())
            target.write("a.txt", text.encode())
            target.write(os.path.join("templates", "b.txt"), b"b")
            target.finish()

    return run


def start(output: str, fingerprint: str = "f") -> None:
    """Leave a partial output with `a.txt` done."""
    with OutputDirectory(output, fingerprint, overwrite=False) as target:
        target.begin()
        target.write("a.txt", b"partly")


def test_a_finished_output_holds_what_was_written_and_nothing_is_left_beside_it(output, make) -> None:
    make()
    assert sorted(os.listdir(output)) == ["a.txt", "expert_sidecar", MARKER, "templates"]
    assert os.listdir(os.path.dirname(output)) == ["out"]
    marker = json.loads(Path(output, MARKER).read_text())
    assert marker["complete"] is True
    assert marker["files"]["a.txt"] == {"nbytes": 1, "crc32": 3904355907}
    with OutputDirectory(output, "f", overwrite=False) as again:
        assert again.complete


def test_nothing_is_under_the_final_name_before_the_end(output) -> None:
    start(output)
    assert not os.path.exists(output)
    assert sorted(os.listdir(output + ".partial")) == ["a.txt", MARKER]


def test_what_is_whole_is_taken_up_and_what_is_damaged_is_not(output, schema) -> None:
    start(output)
    write_sidecar(output + ".partial/expert_sidecar", schema())
    with OutputDirectory(output, "f", overwrite=False) as target:
        target.begin()
        assert target.done("a.txt")
        assert not target.done("b.txt")
        assert target.sidecar_done
    for path in ("a.txt", "expert_sidecar/layer_00.bin"):
        full = os.path.join(output + ".partial", path)
        raw = bytearray(Path(full).read_bytes())
        raw[0] ^= 1
        Path(full).write_bytes(raw)
    with OutputDirectory(output, "f", overwrite=False) as target:
        target.begin()
        assert not target.done("a.txt")
        assert not target.sidecar_done


def test_another_source_begins_anew(output) -> None:
    start(output)
    with OutputDirectory(output, "g", overwrite=False) as target:
        target.begin()
        assert not target.done("a.txt")
        assert os.listdir(target.partial) == [MARKER]


def test_what_interrupted_writes_left_is_not_put_in_place(output, make) -> None:
    start(output)
    for name in ("model.safetensors.tmp", "expert_sidecar.partial.lock"):
        Path(os.path.join(output + ".partial", name)).touch()
    os.mkdir(output + ".partial/expert_sidecar.partial")
    make()
    assert sorted(os.listdir(output)) == ["a.txt", "expert_sidecar", MARKER, "templates"]


def test_an_output_of_another_source_is_replaced_only_on_demand(output, make) -> None:
    make("f", text="old")
    with pytest.raises(PruneError, match="is there already, made of another source.*--overwrite"):
        OutputDirectory(output, "g", overwrite=False)
    assert os.listdir(os.path.dirname(output)) == ["out"]
    make("g", overwrite=True, text="new")
    assert Path(output, "a.txt").read_text() == "new"
    assert os.listdir(os.path.dirname(output)) == ["out"]


def test_on_demand_the_same_is_made_again(output, make) -> None:
    make("f")
    make("f", overwrite=True)


def test_an_output_that_was_changed_since_is_not_taken_for_whole(output, make) -> None:
    make("f")
    with open(os.path.join(output, "a.txt"), "w") as out:
        out.write("longer")
    with pytest.raises(PruneError, match="or changed since"):
        OutputDirectory(output, "f", overwrite=False)
    os.unlink(os.path.join(output, "expert_sidecar", "layer_00.bin"))
    with pytest.raises(PruneError, match="or changed since"):
        OutputDirectory(output, "f", overwrite=False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_mach_prune_did_not_make_is_never_replaced(output, make, overwrite) -> None:
    os.makedirs(output)
    Path(os.path.join(output, "thesis.tex")).touch()
    with pytest.raises(PruneError, match="holds thesis.tex and no mach_prune.json"):
        OutputDirectory(output, "f", overwrite=overwrite)
    shutil.rmtree(output)
    make("g")
    Path(os.path.join(output, "thesis.tex")).touch()
    with pytest.raises(PruneError, match="thesis.tex|is there already"):
        OutputDirectory(output, "f", overwrite=overwrite)
    shutil.rmtree(output)
    Path(output).touch()
    with pytest.raises(PruneError, match="is not a directory"):
        OutputDirectory(output, "f", overwrite=overwrite)
    os.unlink(output)
    os.symlink(os.path.dirname(output), output)
    with pytest.raises(PruneError, match="is not a directory"):
        OutputDirectory(output, "f", overwrite=overwrite)
    os.unlink(output)
    os.makedirs(output + ".partial/notes")
    with pytest.raises(PruneError, match="out.partial: holds notes"):
        OutputDirectory(output, "f", overwrite=overwrite)


def test_an_empty_directory_is_as_good_as_none(output, make) -> None:
    os.makedirs(output)
    make()
    assert "a.txt" in os.listdir(output)


@pytest.mark.parametrize(
    "marker",
    [
        "{", "[]", "{}", "null", '"mach-prune-v1"',
        {"format": "mach-prune-v2"},
        {"complete": 1},
        {"files": {"../x": {"nbytes": 1, "crc32": 1}}},
        {"files": {"/x": {"nbytes": 1, "crc32": 1}}},
        {"files": {"x": 1}},
        {"files": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_a_strange_marker_makes_nothing_ours(output, marker) -> None:
    os.makedirs(output)
    Path(os.path.join(output, "a.txt")).touch()
    if isinstance(marker, dict):
        good = {"format": "mach-prune-v1", "complete": True, "fingerprint": "f", "files": {}}
        marker = json.dumps(good | marker)
    Path(output, MARKER).write_text(marker)
    with pytest.raises(PruneError, match="holds a.txt and no mach_prune.json"):
        OutputDirectory(output, "f", overwrite=True)


def test_of_two_at_once_the_second_is_refused(output) -> None:
    with (
        OutputDirectory(output, "f", overwrite=False),
        pytest.raises(SidecarExportError, match="another export"),
    ):
        OutputDirectory(output, "f", overwrite=False)
    assert os.listdir(os.path.dirname(output)) == []
    with OutputDirectory(output, "f", overwrite=False):
        pass


def test_an_output_that_appears_meanwhile_is_not_replaced(output, schema) -> None:
    with OutputDirectory(output, "f", overwrite=False) as target:
        target.begin()
        write_sidecar(target.path("expert_sidecar"), schema())
        os.mkdir(output)
        Path(os.path.join(output, "x")).touch()
        with pytest.raises(PruneError, match="holds x"):
            target.finish()
    assert os.listdir(output) == ["x"]
