"""Tool calls as grammars: what they allow is what the parsers read, and both backends allow the same."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from mach_server.answer.events import ReasoningDelta, TextDelta, ToolCallArguments, ToolCallEnd, ToolCallStart
from mach_server.answer.formats import AnswerFormat, ThinkMarkup, answer_parser, format_of
from mach_server.answer.think_tags import Opening
from mach_server.grammar.answer_forms import Tool, ToolCallForm
from mach_server.grammar.answer_shapes import shape_of
from mach_server.grammar.backend import CompiledGrammar, GrammarBackend, new_mask
from mach_server.grammar.errors import GrammarRefusedError
from mach_server.grammar.grammar_limits import GrammarLimits
from mach_server.grammar.shapes import Shape
from mach_server.grammar.vocabulary import Vocabulary

Matches = Callable[[CompiledGrammar, str], bool]
THINK = ThinkMarkup(begin="<think>", end="</think>")
FORMATS = {
    "hermes": AnswerFormat(dialect="hermes", think=THINK),
    "qwen3_coder": AnswerFormat(dialect="qwen3_coder", think=THINK),
    "harmony": AnswerFormat(dialect="harmony", think=None),
    "gemma4": format_of("gemma4", None),
    "dsml": format_of("deepseek_v4", None),
}
PARAMETERS = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "n": {"type": "integer", "minimum": 0, "maximum": 9},
        "unit": {"enum": ["c", "f"]},
        "list": {"type": "array", "items": {"type": "boolean"}},
    },
    "required": ["text"],
}
TOOLS = (Tool(name="f", parameters=PARAMETERS, strict=True), Tool(name="g"))
CALLS = {
    "hermes": '<tool_call>\n{"name": "f", "arguments": {"text": "a", "n": 1}}\n</tool_call>',
    "qwen3_coder": "<tool_call>\n<function=f>\n<parameter=text>\na\n</parameter>\n<parameter=n>\n1\n"
    "</parameter>\n"
    "</function>\n</tool_call>",
    "harmony": '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"text": "a", "n": 1}',
    "gemma4": '<|tool_call>call:f{n:1,text:<|"|>a<|"|>}<tool_call|>',
    "dsml": '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="text" string="true">a'
    '</｜DSML｜parameter>\n<｜DSML｜parameter name="n" string="false">1</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n"
    "</｜DSML｜tool_calls>",
}


def shape(
    name: str, opening: Opening = Opening.CONTENT, tools: tuple[Tool, ...] = TOOLS, **form: Any
) -> Shape:
    return shape_of(ToolCallForm(tools=tools, **form), FORMATS[name], opening, GrammarLimits())


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_required_call_is_all_that_is_allowed(name: str, backend: GrammarBackend, matches: Matches) -> None:
    grammar = backend.compile(shape(name, choice="required"), param="tools")
    call = CALLS[name]
    assert matches(grammar, call)
    assert not matches(grammar, "")
    assert not matches(grammar, "Hello.")
    assert not matches(grammar, call + " and")
    assert not matches(
        grammar, call.replace("=f", "=h").replace('"f"', '"h"').replace(":f", ":h").replace(".f ", ".h ")
    )
    assert not matches(grammar, call.replace("1", "x"))


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_with_auto_text_is_free_until_a_call_begins(
    name: str, backend: GrammarBackend, matches: Matches
) -> None:
    grammar = backend.compile(shape(name, choice="auto"), param="tools")
    call = CALLS[name]
    assert matches(grammar, "Hello é {} <tool")
    assert matches(grammar, "")
    assert matches(grammar, ("Let me see. " if name != "harmony" else "") + call)
    assert not matches(grammar, call[:-6])
    assert not matches(grammar, call.replace("text", "test"))


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder", "gemma4"])
def test_parallel_calls_are_allowed_only_where_asked_for(
    name: str, backend: GrammarBackend, matches: Matches
) -> None:
    twice = CALLS[name] + "\n" + CALLS[name]
    for choice in ("auto", "required"):
        assert matches(backend.compile(shape(name, choice=choice), param="tools"), twice)
        assert not matches(backend.compile(shape(name, choice=choice, parallel=False), param="tools"), twice)


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder", "dsml"])
def test_reasoning_before_the_call_is_free(name: str, backend: GrammarBackend, matches: Matches) -> None:
    call = CALLS[name]
    begun = backend.compile(shape(name, Opening.REASONING, choice="required"), param="tools")
    assert matches(begun, f"so <tool_call> {{}}</think>\n\n{call}")
    assert not matches(begun, "so on and on")
    assert not matches(begun, f"a</think>b{call}")
    either = backend.compile(shape(name, Opening.EITHER, choice="required"), param="tools")
    assert matches(either, call)
    assert matches(either, f"<think>so</think>{call}")
    assert not matches(either, f"so</think>{call}")


def test_harmony_reasons_in_its_own_channel(backend: GrammarBackend, matches: Matches) -> None:
    grammar = backend.compile(shape("harmony", choice="required"), param="tools")
    assert matches(grammar, f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant{CALLS['harmony']}")


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_whatever_a_grammar_allows_is_read_as_calls_that_obey_the_schema(
    name: str, backend: GrammarBackend, byte_vocabulary: Vocabulary
) -> None:
    """Random walks through the masks, weighted so that they come to an end."""
    grammar = backend.compile(shape(name, choice="required"), param="tools")
    mask = new_mask(byte_vocabulary.size)
    ended = 0
    for seed in range(12):
        chooser, matcher, text = random.Random(seed), grammar.matcher(), bytearray()
        while not matcher.is_terminated():
            matcher.fill(mask)
            tokens = [t for t in range(byte_vocabulary.size) if mask[t // 32] >> (t % 32) & 1]
            ending = [t for t in tokens if t in byte_vocabulary.end_tokens]
            plain = [t for t in tokens if t < 127 and (chr(t).isalnum() or chr(t) in '<>/|"{}[]=,:\n')]
            token = chooser.choice(ending or plain or tokens)
            if len(text) > 300 and not ending:
                # Closing what is open: markup is what the parsers and the grammars agree on.
                token = next((t for t in plain if chr(t) in '"}]<'), token)
            assert matcher.accept(token)
            text += byte_vocabulary.tokens[token]
            if len(text) > 4000:
                break
        if not matcher.is_terminated():
            continue
        ended += 1
        parser = answer_parser(
            FORMATS[name], opening=Opening.CONTENT, tools={"f": PARAMETERS, "g": {}}, whole_calls=True
        )
        events = parser.feed(text.decode()) + parser.finish()
        assert not any(isinstance(event, TextDelta | ReasoningDelta) for event in events), text
        assert any(isinstance(event, ToolCallEnd) for event in events)
        names = {event.index: event.name for event in events if isinstance(event, ToolCallStart)}
        for event in events:
            if isinstance(event, ToolCallArguments):
                arguments = json.loads(event.fragment)
                if names[event.index] == "g":
                    assert arguments == {}
                    continue
                assert isinstance(arguments["text"], str)
                assert set(arguments) <= set(PARAMETERS["properties"])
                assert arguments.get("n", 0) in range(10)
                assert arguments.get("unit", "c") in ("c", "f")
                assert all(isinstance(item, bool) for item in arguments.get("list", []))
    assert ended >= 3


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_schema_that_is_not_strict_is_advice(name: str, backend: GrammarBackend, matches: Matches) -> None:
    odd = {"type": "object", "properties": {"text": {"type": "string"}, "n": {"not": {}}}}
    lax = shape(name, tools=(Tool(name="f", parameters=odd),), choice="required")
    assert matches(
        backend.compile(lax, param="tools"),
        CALLS[name].replace('string="false">1', 'string="true">1').replace("n:1,", ""),
    )
    with pytest.raises(GrammarRefusedError) as refused:
        shape(name, tools=(Tool(name="f", parameters=odd, strict=True),))
    assert refused.value.keyword == "not"
    assert refused.value.param == "tools[0].function.parameters"


def test_what_no_format_can_carry_is_refused() -> None:
    with pytest.raises(GrammarRefusedError, match="name"):
        shape("hermes", tools=(Tool(name='f"\n'),))
    with pytest.raises(GrammarRefusedError, match="tools"):
        shape("hermes", tools=())
    with pytest.raises(GrammarRefusedError, match="knows no tools"):
        shape_of(
            ToolCallForm(tools=TOOLS),
            AnswerFormat(dialect=None, think=None),
            Opening.CONTENT,
            GrammarLimits(),
        )
    for parameters in (
        {"properties": {"a>b": {}}},
        {"properties": {}, "additionalProperties": True},
        {"properties": {"a": {"type": "string", "maxLength": 3}}},
        {"anyOf": [{}]},
    ):
        with pytest.raises(GrammarRefusedError):
            shape("qwen3_coder", tools=(Tool(name="f", parameters=parameters, strict=True),))
    with pytest.raises(GrammarRefusedError, match="object"):
        shape("hermes", tools=(Tool(name="f", parameters={"type": "string"}, strict=True),))
