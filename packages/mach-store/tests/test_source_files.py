import os

import pytest

from mach.io.inspection import inspect_checkpoint
from mach_store.errors import PruneError
from mach_store.prune import source_files
from mach_store.prune.source_files import small_files, source_fingerprint


def test_tokenizer_templates_and_texts_go_along_and_weights_do_not(tmp_path) -> None:
    taken = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "merges.txt", "LICENSE",
             "generation_config.json", "tokenizer.model"}  # fmt: skip
    left = {"config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "x.gguf",
            ".gitattributes", "hf_quant_config.json", "mine.json", "flax.msgpack"}  # fmt: skip
    for name in taken | left:
        (tmp_path / name).write_text("x")
    (tmp_path / "expert_sidecar").mkdir()
    (tmp_path / "original").mkdir()
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "LICENSE", tmp_path / "NOTICE")  # the hub's cache holds links to blobs
    found = set(small_files(str(tmp_path), "mine.json"))
    assert found == taken | {"NOTICE", "additional_chat_templates/tool_use.jinja"}


def test_a_file_too_large_for_a_text_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(source_files, "MAX_SMALL_BYTES", 10)
    (tmp_path / "notes.txt").write_text("x" * 11)
    with pytest.raises(PruneError, match="notes.txt: 11 bytes are too many"):
        small_files(str(tmp_path), "mine.json")


@pytest.mark.parametrize("layout", ["engine", "stacked"])
def test_a_change_of_any_file_or_setting_changes_the_fingerprint(
    checkpoints, copy_checkpoint, layout
) -> None:
    directory = copy_checkpoint(getattr(checkpoints, layout)())
    (directory / "tokenizer.json").write_text("{}")
    files = small_files(str(directory), "mine.json")

    def fingerprint(settings: str = "s") -> str:
        return source_fingerprint(inspect_checkpoint(directory), files, settings)

    seen = [fingerprint()]
    assert fingerprint() == seen[0]
    assert fingerprint("t") != seen[0]
    changed = ["config.json", "model.safetensors", "tokenizer.json"]
    if layout == "engine":
        changed.append("expert_sidecar/layout.json")
    for name in changed:
        path = directory / name
        raw = path.read_bytes()
        status = path.stat()
        path.write_bytes(raw + b" ")
        assert fingerprint() not in seen, name
        seen.append(fingerprint())
        path.write_bytes(raw)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert fingerprint() == seen[0], name
    os.utime(directory / "model.safetensors", ns=(0, 0))
    assert fingerprint() not in seen
