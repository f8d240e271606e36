"""Every example of docs/api.md does what the page says."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "api.md").read_text()
EXAMPLES = re.findall(r"```sh\n(curl .*?)```\n\n```(json|text)\n(.*?)```", PAGE, re.DOTALL)
TABLE = PAGE[PAGE.index("| path | API |") : PAGE.index("Every example")]
PATHS = re.findall(r"`(?:GET|POST) (/[^`]+)`", TABLE)


def matches(shown: str, real: str) -> bool:
    """Whether `real` is what is shown, with anything for each ellipsis."""
    return re.fullmatch(".*".join(map(re.escape, shown.split("…"))), real, re.DOTALL) is not None


def check(shown: Any, real: Any, where: str = "answer") -> None:
    """Everything that is shown is there."""
    if isinstance(shown, dict):
        for name, value in shown.items():
            assert name in real, f"{where}.{name}"
            check(value, real[name], f"{where}.{name}")
    elif isinstance(shown, list):
        assert len(shown) == len(real), where
        for index, value in enumerate(shown):
            check(value, real[index], f"{where}[{index}]")
    elif isinstance(shown, str):
        assert isinstance(real, str) and matches(shown, real), (where, real)
    else:
        assert shown == real, where


@pytest.mark.parametrize(("command", "kind", "shown"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_answers_what_is_shown(served_pico: str, command: str, kind: str, shown: str) -> None:
    assert "http://127.0.0.1:8080" in command
    run = subprocess.run(
        ["bash", "-c", command.replace("http://127.0.0.1:8080", served_pico)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    if kind == "json":
        check(json.loads(shown), json.loads(run.stdout))
        return
    lines = iter(run.stdout.splitlines())
    for expected in shown.splitlines():
        assert any(matches(expected, line) for line in lines), (expected, run.stdout)


def test_every_endpoint_has_an_example() -> None:
    assert len(PATHS) == len(set(PATHS)) >= 12
    called = {re.search(r"http://127.0.0.1:8080(\S+)", command)[1] for command, _, _ in EXAMPLES}
    assert {path.replace("{id}", "mach-pico") for path in PATHS} == called
