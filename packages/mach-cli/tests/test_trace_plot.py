import subprocess
import sys

import pytest

from mach_cli import trace_plot
from mach_cli.trace_command import main

NAMES = ("hit-rate", "experts", "reuse")


@pytest.fixture
def plot(capsys, recording, tmp_path):
    """A function (arguments) → exit status, stdout, stderr; into tmp_path/pictures."""

    def run(*arguments: object, file=recording) -> tuple[int, str, str]:
        status = main(["plot", str(file), "--out", str(tmp_path / "pictures"), *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize(("form", "begins"), [("png", b"\x89PNG\r\n"), ("svg", b"<?xml")])
def test_three_pictures_are_drawn(plot, tmp_path, form, begins) -> None:
    status, out, err = plot("--format", form, "--sizes", "0.5,1.0")
    assert (status, err) == (0, "")
    paths = [tmp_path / "pictures" / f"{name}.{form}" for name in NAMES]
    assert out.splitlines() == [str(path) for path in paths]
    assert sorted(paths) == sorted((tmp_path / "pictures").iterdir())
    for path in paths:
        assert path.read_bytes().startswith(begins)


def test_drawing_again_replaces_the_pictures(plot, tmp_path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "reuse.png").write_bytes(b"old")
    assert plot("--policy", "lru", "--sizes", "1.0")[0] == 0
    assert (tmp_path / "pictures" / "reuse.png").read_bytes() != b"old"


def test_without_matplotlib_it_says_what_to_install(plot, monkeypatch, tmp_path) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(trace_plot, "import_module", missing)
    status, out, err = plot()
    assert (status, out) == (2, "")
    assert "pip install 'mach-cli[plot]'" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "pictures").exists()


def test_a_broken_matplotlib_is_not_called_missing(plot, monkeypatch) -> None:
    def broken(name: str) -> None:
        raise ModuleNotFoundError("No module named 'kiwisolver'", name="kiwisolver")

    monkeypatch.setattr(trace_plot, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="kiwisolver"):
        plot()


def test_the_other_commands_do_without_matplotlib() -> None:
    script = "import sys, mach_cli.trace_command; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_pictures_that_cannot_be_written_are_one_line(plot, tmp_path) -> None:
    (tmp_path / "pictures").write_text("in the way")
    status, _, err = plot("--sizes", "1.0")
    assert status == 2
    assert err.startswith(f"mach trace: {tmp_path / 'pictures'}: cannot be written (")
    assert err.count("\n") == 1


def test_a_picture_that_fails_leaves_none_of_its_name(plot, tmp_path, monkeypatch) -> None:
    def fail(source, target) -> None:
        raise OSError(28, "No space left on device", str(source))

    monkeypatch.setattr(trace_plot.os, "replace", fail)
    status, _, err = plot("--sizes", "1.0")
    assert status == 2
    assert "hit-rate.png.partial: cannot be written (No space left on device)" in err
    assert list((tmp_path / "pictures").iterdir()) == []


def test_a_trace_without_decoding_or_bank_is_drawn(capsys, stacked, tmp_path, plot) -> None:
    path = tmp_path / "short.trace"
    arguments = ["record", str(stacked), "--no-streaming", "--out", str(path), "--prompt", "x"]
    assert main([*arguments, "--max-tokens", "1"]) == 0
    capsys.readouterr()
    assert plot("--sizes", "1.0", file=path)[0] == 0
