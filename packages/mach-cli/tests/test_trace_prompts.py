import pytest

from mach.errors import CommandError
from mach_cli import trace_prompts
from mach_cli.trace_prompts import read_prompts


def test_each_line_is_a_prompt_and_empty_ones_are_none(tmp_path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("  indented\r\n\n \nüber\x0bx\n".encode())
    assert read_prompts(path) == ["  indented", "über\x0bx"]


def test_json_lines_may_hold_anything(tmp_path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('"a\\nb"\n\n"{}"\n')
    assert read_prompts(path) == ["a\nb", "{}"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p.txt", b"\n \n", "holds no prompt"),
        ("p.txt", b"a\n\xff", "is not UTF-8 at byte 2"),
        ("p.jsonl", b'"a"\n{', "line 2: is not JSON"),
        ("p.jsonl", b'"a"\n\n{"prompt": "x"}', "line 3: is not a JSON string"),
    ],
)
def test_what_is_no_prompt_is_named_by_line(tmp_path, name, data, message) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CommandError, match=message):
        read_prompts(tmp_path / name)


def test_a_huge_file_is_not_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(trace_prompts, "MAX_BYTES", 3)
    (tmp_path / "p.txt").write_text("abcd")
    with pytest.raises(CommandError, match="4 bytes are too many for prompts"):
        read_prompts(tmp_path / "p.txt")
    with pytest.raises(CommandError, match="cannot be read"):
        read_prompts(tmp_path / "nothing.txt")
