"""Long work draws bars on a terminal, and nothing elsewhere; `--quiet` keeps a terminal clean too."""

import os
import pty
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mach.io.checkpoint_path import resolve_checkpoint
from mach_store.engine_checkpoint import write_stacked_checkpoint

GENERATE = (sys.executable, "-m", "mach_cli.generate_command")
SERVE = (sys.executable, "-m", "mach_server.serve_command")
PROMPT = "def f(x):\n    return x\n\n" * 40


class Terminal:
    """A pseudo-terminal whose text is gathered while a process writes to it."""

    def __init__(self) -> None:
        self._main, self.end = pty.openpty()
        self._text = b""
        self._thread = threading.Thread(target=self._gather)
        self._thread.start()

    def _gather(self) -> None:
        while True:
            try:
                piece = os.read(self._main, 4096)
            except OSError:  # Linux says so when the last writer is gone
                return
            if not piece:
                return
            self._text += piece

    def text(self) -> str:
        """All that was written, when nobody writes any more."""
        os.close(self.end)
        self._thread.join(20)
        os.close(self._main)
        return self._text.decode()


@pytest.fixture(scope="module")
def stacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("progress") / "stacked"
    write_stacked_checkpoint(resolve_checkpoint("mach-pico"), directory)
    return directory


def on_a_terminal(*arguments: str) -> tuple[str, str]:
    """A run with its stderr on a terminal: stdout, and what the terminal got."""
    terminal = Terminal()
    result = subprocess.run(
        [*GENERATE, *arguments, "--prompt", PROMPT, "--max-tokens", "3"],
        stdout=subprocess.PIPE,
        stderr=terminal.end,
        check=True,
        timeout=240,
        env={**os.environ, "COLUMNS": "70"},
    )
    return result.stdout.decode(), terminal.text()


def bars(text: str) -> dict[str, str]:
    """Label → the last state of each bar."""
    return {
        match[1]: match[0] for match in re.finditer(r"(\w+) \[[#-]+\] +\d+% \d+ (?:MB|tok)/s[^\r\n]*", text)
    }


@pytest.mark.parametrize("mode", ["--streaming", "--no-streaming"])
def test_loading_and_a_long_prompt_draw_bars_on_a_terminal(stacked: Path, mode: str) -> None:
    checkpoint = str(stacked) if mode == "--no-streaming" else "mach-pico"
    text, shown = on_a_terminal(checkpoint, mode)
    drawn = bars(shown)
    assert list(drawn)[-1] == "prompt"
    assert sorted(drawn) == ["experts", "prompt", "weights"]
    for label, bar in drawn.items():
        assert "100%" in bar, label
        assert ("tok/s" if label == "prompt" else "MB/s") in bar
    *lines, figures, end = re.split(r"\r?\n", shown)
    assert len(lines) == 2, "one line for the load, one for the prompt"
    assert all(len(part) <= 70 for line in lines for part in line.split("\r"))
    assert figures.startswith("prompt ") and "tok/s; decode 3 tokens" in figures
    assert end == ""
    quiet_text, quiet = on_a_terminal(checkpoint, mode, "--quiet")
    assert quiet_text == text
    assert "[" not in quiet and "decode" not in quiet


def test_the_recording_of_a_trace_draws_how_far_its_prompts_are(tmp_path) -> None:
    record = [str(Path(sys.executable).parent / "mach"), "trace", "record", "mach-pico", "--max-tokens", "3"]
    prompts = ["--prompt", PROMPT, "--prompt", "def"]
    terminal = Terminal()
    done = subprocess.run(
        [*record, "--out", str(tmp_path / "a.trace"), *prompts],
        stdout=subprocess.PIPE,
        stderr=terminal.end,
        timeout=240,
        check=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    shown = terminal.text()
    last = shown.rstrip("\r\n").rpartition("\r")[2]
    assert re.fullmatch(r"prompt 2 of 2 \[#+\] 100% \d+ tok/s 0:00 left *", last), shown
    assert "prompt 1 of 2 [" in shown and "experts [" in shown
    assert done.stdout.count(b"\n") == 1
    quiet = subprocess.run(
        [*record, "--out", str(tmp_path / "b.trace"), *prompts], capture_output=True, timeout=240, check=True
    )
    assert quiet.stderr == b""


def test_elsewhere_nothing_is_drawn() -> None:
    result = subprocess.run(
        [*GENERATE, "mach-pico", "--prompt", PROMPT, "--max-tokens", "3"],
        capture_output=True,
        check=True,
        timeout=240,
    )
    assert b"\r" not in result.stderr and b"#" not in result.stderr
    assert result.stderr.count(b"\n") == 1


@pytest.mark.parametrize("flags", [(), ("--quiet",), ("--log-format", "json")], ids=str)
def test_a_server_that_starts_draws_a_bar_unless_it_is_quiet_or_logs_documents(flags) -> None:
    terminal = Terminal()
    server = subprocess.Popen(
        [*SERVE, "mach-pico", "--streaming", "--port", "0", *flags],
        stdout=subprocess.PIPE,
        stderr=terminal.end,
        text=True,
        env={**os.environ, "COLUMNS": "70"},
    )
    assert server.stdout is not None
    try:
        lines = []
        for line in server.stdout:
            lines.append(line)
            if line.startswith("startup ready"):
                break
        server.send_signal(signal.SIGTERM)
        server.stdout.read()
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    shown = terminal.text()
    assert lines[-1].startswith("startup ready"), shown
    assert sorted(bars(shown)) == ([] if flags else ["experts", "weights"])
    assert flags or shown.count("\n") >= 1
