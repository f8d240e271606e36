"""Cheap forms go to xgrammar; those it is slow or wrong at do not."""

import subprocess
import sys

import pytest

from mach_server.grammar.compile_cost import prefers_xgrammar
from mach_server.grammar.json_schema import canonical
from mach_server.grammar.shapes import Json, OneOf, Regex, Sequence, Shape, Text, Until

LARGE, SMALL = 150_000, 8_000
BOUNDED = Json(canonical({"type": "string", "maxLength": 20}))


@pytest.mark.parametrize(
    ("shape", "vocabulary", "preferred"),
    [
        (Json(canonical({"type": "integer"})), LARGE, True),
        (Sequence((Until("</think>"), Json(canonical({"type": "null"})))), LARGE, True),
        (BOUNDED, LARGE, False),
        (BOUNDED, SMALL, True),
        (Json(canonical({"type": "string", "pattern": "a"})), SMALL, False),
        (Sequence((Text("a"), Regex("a(?=b)"))), SMALL, False),
        (OneOf(tuple(Text(str(i)) for i in range(1000))), LARGE, False),
    ],
)
def test_the_choice_follows_cost_and_exactness(shape: Shape, vocabulary: int, preferred: bool) -> None:
    assert prefers_xgrammar(shape, vocabulary) is preferred


def test_neither_grammars_nor_parsers_need_mlx() -> None:
    code = (
        "import sys; import mach_server.answer.formats, mach_server.grammar.grammar_service;"
        "assert not {'mlx', 'asyncio', 'torch'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
