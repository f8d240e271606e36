"""The flags that say where experts are kept."""

import argparse

import pytest

from mach.commands.budget_flags import add_budget_flags
from mach.commands.residency_flags import add_residency_flags, refuse_beside_openai


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="x")
    add_residency_flags(made)
    add_budget_flags(made)
    return made


@pytest.mark.parametrize(
    ("arguments", "residency"), [([], None), (["--streaming"], "streaming"), (["--no-streaming"], "stacked")]
)
def test_a_flag_names_a_residency_and_none_leaves_it_open(parser, arguments, residency) -> None:
    assert parser.parse_args(arguments).residency == residency


def test_both_flags_together_are_refused(parser, capsys) -> None:
    with pytest.raises(SystemExit):
        parser.parse_args(["--streaming", "--no-streaming"])
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["--streaming"], ["--no-streaming"], ["--expert-cache-gb", "1"], ["--prefill-scratch-gb", "1"]],
)
def test_what_the_openai_backend_has_not_is_refused_beside_it(parser, capsys, arguments) -> None:
    with pytest.raises(SystemExit):
        refuse_beside_openai(parser, parser.parse_args(arguments))
    assert "leave out --streaming, --no-streaming" in capsys.readouterr().err


def test_other_budgets_may_stand_beside_the_openai_backend(parser) -> None:
    refuse_beside_openai(parser, parser.parse_args(["--memory-gb", "4", "--kv-cache-gb", "1"]))
