import json

import pytest

from mach.commands.archs import main
from mach.io.arch_registry import registry_summary


def test_json_is_the_registrys_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == registry_summary()


def test_the_table_has_the_documented_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    header, rule, *rows = capsys.readouterr().out.splitlines()
    columns = [column.strip() for column in header.split("  ") if column.strip()]
    assert columns == [
        "model_type",
        "swiglu",
        "stacked",
        "expert_bias",
        "wrapped",
        "bits / group",
        "model_module",
    ]
    assert rows[3].split() == [
        "gpt_oss",
        "silu_limited",
        "yes",
        "yes",
        "no",
        "4",
        "/",
        "32",
        "mach.models.gpt_oss",
    ]


def test_unknown_arguments_are_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--yaml"]) == 2
    assert "unrecognized argument '--yaml'" in capsys.readouterr().err
    assert main(["--help"]) == 0
