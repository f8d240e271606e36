"""docs/benchmarks.md: tables say what the CSV files say, commands exist, pictures can be drawn again."""

import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark_tables import TABLES, TARGETS
from fill_benchmarks import MISSING, block

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
BENCH = ROOT / "tools" / "bench"
COMMANDS = [
    shlex.split(line) for line in re.findall(r"^\$ uv run python (.*)", PAGE.read_text(), re.MULTILINE)
]

# Just the rows that pictures and tables need: kinds of row × columns with any number.
SAMPLES = {
    "kernels": [{"what": f"routed experts, affine {n}-bit", "tokens": "1"} for n in (4, 8)],
    "llama": [
        {"what": "mach, streaming, all resident", "of_llama_cpp": "0.7"},
        {"what": "llama.cpp, Q4_0", "of_llama_cpp": "1.000"},
    ],
    "decode": [
        {"what": what, "checkpoint": checkpoint}
        for what in ("mlx-lm, as loaded", "mach, stacked", "mach, streaming, bank of 100 %")
        for checkpoint in ("mach-pico", "big")
    ],
    "bank": [
        {"what": "as shipped", "checkpoint": checkpoint, "reads": reads, "bank_percent": percent}
        for checkpoint in ("mach-pico", "big")
        for reads in ("direct", "page cache")
        for percent in ("50", "25", "12.5")
    ],
    "bank_variants": [{"what": "policy lru", "checkpoint": name} for name in ("mach-pico", "big")],
    "limit": [{"what": "mlx-lm, lazily loaded", "outcome": "killed by the kernel"}],
    "disk": [{"what": "4 threads", "checkpoint": "big"}, {"what": "8 threads", "checkpoint": "big"}],
    "prefill": [
        {"what": what, "checkpoint": checkpoint, "prompt_tokens": "2000"}
        for what in ("all experts resident", "bank of 12.5 %, page cache")
        for checkpoint in ("mach-pico", "big")
    ],
    "growth": [
        {"axis": axis, "value": value, "bank_percent": percent}
        for axis in ("experts", "layers", "context", "bank")
        for value in ("10", "20")
        for percent in ("100", "25")
    ],
}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like docs/bench with a row of every kind."""
    folder = tmp_path_factory.mktemp("bench")
    for name, rows in SAMPLES.items():
        columns = {column for table in TABLES.values() if table.csv == name for column in table.columns}
        columns |= {column for target in TARGETS if target.csv == name for column in target.where}
        every = ["date", "machine", "others", *sorted(columns | set(rows[0]))]
        with open(folder / f"{name}.csv", "w", newline="") as handle:
            writer = csv.DictWriter(handle, every, restval="0.5")
            writer.writeheader()
            writer.writerows(rows)
    return folder


def tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)


def test_the_page_shows_what_the_files_say() -> None:
    done = tool(BENCH / "fill_benchmarks.py", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_mark_of_the_page_is_known_and_every_table_is_shown(samples: Path) -> None:
    marks = re.findall(r"<!-- begin ([a-z0-9-]+) -->\n", PAGE.read_text())
    assert sorted(marks) == sorted(["targets", *TABLES, *(f"figure-{n}" for n in range(1, 7))])
    for name in TABLES:
        assert MISSING not in block(name, samples)
    assert MISSING not in block("targets", samples)


def test_a_figure_that_changed_is_noticed(samples: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- begin llama -->\nold\n<!-- end llama -->\n")
    fill = (BENCH / "fill_benchmarks.py", "--bench", samples, "--page", page)
    assert tool(*fill, "--check").returncode == 1
    assert tool(*fill).returncode == 0
    assert "llama.cpp, Q4_0" in page.read_text()
    assert tool(*fill, "--check").returncode == 0
    page.write_text(page.read_text().replace("0.7", "0.9"))
    assert tool(*fill, "--check").returncode == 1


def test_every_picture_is_drawn_small_and_alike_each_time(samples: Path, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        done = tool(BENCH / "plot_figures.py", "--bench", samples, "--output", tmp_path / folder)
        assert done.returncode == 0, done.stderr
        assert "not drawn" not in done.stdout
    first = sorted((tmp_path / "first").iterdir())
    assert [path.name for path in first] == [f"figure-{n}.svg" for n in range(1, 7)]
    for path in first:
        assert path.stat().st_size < 150_000
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


def test_the_pages_pictures_are_there_and_small() -> None:
    for target in re.findall(r"!\[[^]]*\]\(([^)]*)\)", PAGE.read_text()):
        assert (PAGE.parent / target).stat().st_size < 150_000


def test_pictures_can_be_drawn_from_the_files_of_the_page(tmp_path: Path) -> None:
    shown = re.findall(r"bench/figures/([\w-]+\.svg)", PAGE.read_text())
    done = tool(BENCH / "plot_figures.py", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} >= set(shown)


@pytest.mark.parametrize("name", sorted({command[0] for command in COMMANDS}))
def test_the_pages_commands_are_tools_with_these_flags(name: str) -> None:
    done = tool(ROOT / name, "--help")
    assert done.returncode == 0, done.stderr
    given = {word for command in COMMANDS if command[0] == name for word in command if word.startswith("--")}
    assert given <= set(re.findall(r"--[a-z-]+", done.stdout))
