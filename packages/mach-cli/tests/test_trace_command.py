import subprocess
import sys
from pathlib import Path

import pytest

from mach.commands import dispatch
from mach_cli.trace_command import main


def test_help_names_the_three_commands_and_each_has_its_own(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for name in ("record", "replay", "plot"):
        assert f"    {name} " in out
        with pytest.raises(SystemExit) as caught:
            main([name, "--help"])
        assert caught.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: mach trace {name} ")


@pytest.mark.parametrize("arguments", [[], ["draw"], ["replay"], ["plot", "x"], ["replay", "x", "--jso"]])
def test_wrong_calls_are_usage_errors(capsys, arguments) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: mach trace" in capsys.readouterr().err


def test_it_is_a_command_of_mach(recording, capsys) -> None:
    assert dispatch.main(["--help"]) == 0
    assert "  trace " in capsys.readouterr().out
    assert dispatch.main(["trace", "replay", str(recording), "--sizes", "1.0"]) == 0
    assert "hit rate" in capsys.readouterr().out
    program = Path(sys.executable).parent / "mach"
    run = subprocess.run(
        [program, "trace", "replay", recording, "--sizes", "1.0", "--policy", "lru"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    assert "hit rate" in run.stdout
