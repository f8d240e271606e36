from pathlib import Path

import pytest

from mach.io.tokenizer_files import has_tokenizer, tokenizer_problem


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE"}}\n')
    (tmp_path / "tokenizer_config.json").write_text("{}")
    return tmp_path


def test_plausible_files_pass(directory: Path) -> None:
    assert has_tokenizer(str(directory))
    assert tokenizer_problem(str(directory)) is None


def test_a_directory_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").mkdir()
    (tmp_path / "vocab.json").write_text("{}")
    assert not has_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("tokenizer.json", b"<html>", "not a tokenizers file"),
        ("tokenizer.json", b"{}", "not a tokenizers file"),
        ("tokenizer.json", b'{"model": {"type": "BPE"', "not a tokenizers file"),
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\n", "not a tokenizers file"),
        ("tokenizer_config.json", b"[]", "holds a JSON list"),
        ("generation_config.json", b"[]", "is not a JSON object"),
        ("generation_config.json", b"\xff", "not UTF-8"),
    ],
)
def test_what_loading_refuses_is_seen(directory: Path, name: str, content: bytes, problem: str) -> None:
    (directory / name).write_bytes(content)
    found = tokenizer_problem(str(directory))
    assert found is not None and found.startswith(str(directory / name)) and problem in found


def test_a_generation_config_that_is_no_json_is_not_minded(directory: Path) -> None:
    (directory / "generation_config.json").write_text("{")
    assert tokenizer_problem(str(directory)) is None
