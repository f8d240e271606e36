import io

import pytest

from mach.commands.progress_bar import TOKENS, ProgressBar, bar_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_tells_share_speed_and_time_left() -> None:
    line = bar_line("layer 3 of 8", 250_000_000, 1_000_000_000, 200_000_000, 2.0, 72)
    assert line == "layer 3 of 8 [" + "#" * 8 + "-" * 25 + "]  25% 100 MB/s 0:08 left"
    assert line.isascii()


@pytest.mark.parametrize(
    ("done", "seconds", "end"),
    [
        (0, 0.0, "  0% 0 MB/s"),
        (100 * 10**6, 100.0, " 1% 1 MB/s 2 h 45 min left"),
        (5 * 10**9, 3000.0, " 50% 2 MB/s 50:00 left"),
        (10**10, 10.0, "100% 1000 MB/s 0:00 left"),
    ],
)
def test_long_and_unknown_times_are_readable(done, seconds, end) -> None:
    assert bar_line("x", done, 10**10, done, seconds, 80).endswith(end)


@pytest.mark.parametrize("columns", range(0, 130, 7))
def test_a_line_is_never_wider_than_the_terminal(columns) -> None:
    assert len(bar_line("layer 3 of 8", 1, 3, 1, 1.0, columns)) <= columns


def test_nothing_of_nothing_is_all(monkeypatch) -> None:
    assert "100%" in bar_line("x", 0, 0, 0, 1.0, 80)


def test_a_terminal_shows_one_line_that_ends_with_the_bar(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    with ProgressBar(stream) as bar:
        for done in range(1001):
            bar.update("layer 1 of 2", done, 1000)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("left\n")
    assert "100%" in text.rpartition("\r")[2]
    assert text.count("\r") < 500, "it is not drawn for every chunk"


def test_what_is_taken_up_says_nothing_of_the_speed(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    with ProgressBar(stream) as bar:
        bar.update("x", 10**12, 10**12 + 1, 10**12)
        bar.update("x", 10**12 + 1, 10**12 + 1, 10**12)
    assert stream.getvalue().rpartition("] ")[2].startswith("100% 0 MB/s")


def test_elsewhere_nothing_is_written() -> None:
    stream = io.StringIO()
    with ProgressBar(stream) as bar:
        bar.update("x", 1, 1)
    assert stream.getvalue() == ""


def test_a_run_that_fails_at_once_leaves_no_empty_line() -> None:
    stream = Terminal()
    with pytest.raises(ValueError, match="x"), ProgressBar(stream):
        raise ValueError("x")
    assert stream.getvalue() == ""


def test_tokens_have_a_speed_of_their_own() -> None:
    line = bar_line("prompt", 512, 2047, 512, 2.0, 60, TOKENS)
    assert line.startswith("prompt [###") and line.endswith(" 25% 256 tok/s 0:06 left")


def test_another_total_is_another_measurement_and_a_closed_bar_begins_anew(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    with ProgressBar(stream) as bar:
        bar.update("weights", 10**15, 10**15)
        bar.update("experts", 0, 10**6)
        assert " 0 MB/s" in stream.getvalue().rpartition("\r")[2], "the weights' speed is not the experts'"
        bar.close()
        bar.close()
        assert stream.getvalue().count("\n") == 1
        bar.update("experts", 10**6, 10**6)
    assert stream.getvalue().count("\n") == 2


def test_a_quiet_bar_draws_nothing() -> None:
    stream = Terminal()
    with ProgressBar(stream, quiet=True) as bar:
        bar.update("x", 1, 2)
    assert stream.getvalue() == ""
