"""Whole answers through whole parsers: every wire format, however its text is cut."""

import json
from itertools import count

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mach_server.answer.dialect import Dialect
from mach_server.answer.events import (
    AnswerParser,
    Event,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    joined,
)
from mach_server.answer.formats import DIALECTS, AnswerFormat, ThinkMarkup, answer_parser, format_of
from mach_server.answer.think_tags import Opening

THINK = ThinkMarkup(begin="<think>", end="</think>")
FORMATS = {
    "hermes": AnswerFormat(dialect="hermes", think=THINK),
    "qwen3_coder": AnswerFormat(dialect="qwen3_coder", think=THINK),
    "harmony": AnswerFormat(dialect="harmony", think=None),
    "gemma4": format_of("gemma4", None),
    "dsml": format_of("deepseek_v4", None),
}
TOOLS = {
    "f": {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "n": {"type": "integer"},
            "flag": {"type": "boolean"},
            "list": {"type": "array"},
            "either": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
    },
}
TOOLS["weather.now"] = TOOLS["f"]


def parser_of(
    name: str, *, whole_calls: bool = False, opening: Opening = Opening.EITHER, tools: bool = True
) -> AnswerParser:
    numbers = count()
    return answer_parser(
        FORMATS[name],
        opening=opening,
        tools=TOOLS if tools else None,
        whole_calls=whole_calls,
        new_id=lambda: f"id{next(numbers)}",
    )


def events_of(parser: AnswerParser, pieces: list[str]) -> list[Event]:
    events: list[Event] = []
    for piece in pieces:
        events += parser.feed(piece)
    return joined(events + parser.finish())


def cut(text: str, places: list[int]) -> list[str]:
    edges = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]


def calls_of(events: list[Event]) -> list[tuple[str, str]]:
    """(name, arguments) of every complete call; checks the order of its events."""
    calls: dict[int, list[str]] = {}
    ended: set[int] = set()
    for event in events:
        if isinstance(event, ToolCallStart):
            assert event.index == len(calls) and event.name
            calls[event.index] = [event.name, ""]
        elif isinstance(event, ToolCallArguments):
            assert event.index == len(calls) - 1 and event.index not in ended
            calls[event.index][1] += event.fragment
        elif isinstance(event, ToolCallEnd):
            assert event.index == len(calls) - 1 and event.index not in ended
            ended.add(event.index)
            if not event.complete:
                calls[event.index] = []
    assert ended == set(calls)
    return [(call[0], call[1]) for call in calls.values() if call]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def reasoning_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, ReasoningDelta))


# What models write, and what they break: pieces that make markup, half markup and nonsense.
PIECES = {
    "hermes": [
        "<tool_call>",
        "</tool_call>",
        '{"name": "f", "arguments": {"text": "a{}\\"\\\\"}}',
        '{"name": "f"',
    ],
    "qwen3_coder": [
        "<tool_call>\n<function=f>\n",
        "<parameter=text>\n",
        "\n</parameter>\n",
        "</function>\n</tool_call>",
        "<function=",
        "<parameter=n>12",
    ],
    "harmony": [
        "<|channel|>analysis<|message|>",
        "<|end|>",
        "<|start|>assistant",
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
        " to=functions.f<|channel|>commentary json<|message|>",
        "<|call|>",
        "<|channel|>final<|message|>",
        '{"text": "<|"}',
    ],
    "gemma4": [
        "<|tool_call>call:f{",
        "text:",
        '<|"|>',
        "}",
        "<tool_call|>",
        "[",
        "]",
        ",",
        "n:-1.5e3",
        "{a:",
    ],
    "dsml": [
        '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n',
        '<｜DSML｜parameter name="text" string="true">',
        '<｜DSML｜parameter name="n" string="false">',
        "</｜DSML｜parameter>\n",
        "</｜DSML｜invoke>\n",
        "</｜DSML｜tool_calls>",
        '<｜DSML｜invoke name="weather.now">',
    ],
}
COMMON = [
    "<think>",
    "</think>",
    "\n",
    " ",
    "{",
    "}",
    '"',
    "\\",
    "12",
    "true",
    "é😀",
    "text",
    "<",
    "<|",
    "\\u00",
    ":",
    ",",
]


@st.composite
def broken_text(draw: st.DrawFn, name: str) -> str:
    pieces = draw(st.lists(st.sampled_from(PIECES[name] * 2 + COMMON) | st.text(max_size=4), max_size=14))
    return "".join(
        piece[: draw(st.integers(0, len(piece)))] if draw(st.booleans()) else piece for piece in pieces
    )


@pytest.mark.parametrize("whole_calls", [False, True], ids=["streamed", "whole"])
@pytest.mark.parametrize("name", sorted(FORMATS))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_text_gives_the_same_events_however_it_is_cut(
    name: str, whole_calls: bool, data: st.DataObject
) -> None:
    text = data.draw(broken_text(name))
    opening = data.draw(st.sampled_from(Opening))
    at_once = events_of(parser_of(name, whole_calls=whole_calls, opening=opening), [text])
    places = data.draw(st.lists(st.integers(0, 200), max_size=12))
    assert events_of(parser_of(name, whole_calls=whole_calls, opening=opening), cut(text, places)) == at_once
    assert events_of(parser_of(name, whole_calls=whole_calls, opening=opening), list(text)) == at_once
    for _, arguments in calls_of(at_once):
        assert isinstance(json.loads(arguments), dict)


MARKUP = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<|tool_call>",
    "<tool_call|>",
    "<|channel>thought",
)


@pytest.mark.parametrize("name", sorted(FORMATS))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_text_without_a_complete_call_comes_back_in_full(name: str, data: st.DataObject) -> None:
    text = data.draw(broken_text(name))
    events = events_of(parser_of(name, whole_calls=True, opening=Opening.CONTENT), [text])
    if calls_of(events) or name in ("harmony", "gemma4"):
        return  # their markup is part of every message
    assert "".join(text_of(events).split()) == "".join(text.split())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc_", min_size=1, max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
TEXTS = st.text(max_size=12).filter(lambda text: "<" not in text)


def gemma(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{gemma(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(gemma, value)) + "]"
    return f'<|"|>{value}<|"|>' if isinstance(value, str) else json.dumps(value)


def parameter(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def write_call(name: str, function: str, arguments: dict[str, object]) -> str:
    if name == "hermes":
        call = json.dumps({"name": function, "arguments": arguments})
        return f"<tool_call>\n{call}\n</tool_call>"
    if name == "qwen3_coder":
        inside = "".join(f"<parameter={k}>\n{parameter(v)}\n</parameter>\n" for k, v in arguments.items())
        return f"<tool_call>\n<function={function}>\n{inside}</function>\n</tool_call>"
    if name == "gemma4":
        return f"<|tool_call>call:{function}{gemma(arguments)}<tool_call|>"
    if name == "dsml":
        inside = "".join(
            f'<｜DSML｜parameter name="{k}" string="{"true" if isinstance(v, str) else "false"}">'
            f"{parameter(v)}</｜DSML｜parameter>\n"
            for k, v in arguments.items()
        )
        invoke = f'<｜DSML｜invoke name="{function}">\n{inside}</｜DSML｜invoke>\n'
        return f"<｜DSML｜tool_calls>\n{invoke}</｜DSML｜tool_calls>"
    header = f"<|channel|>commentary to=functions.{function} <|constrain|>json<|message|>"
    return f"{header}{json.dumps(arguments)}<|call|><|start|>assistant"


def write_reasoning(name: str, reasoning: str) -> str:
    if name == "harmony":
        return f"<|channel|>analysis<|message|>{reasoning}<|end|><|start|>assistant"
    if name == "gemma4":
        return f"<|channel>thought\n{reasoning}<channel|>"
    return f"<think>\n{reasoning}\n</think>\n\n"


@st.composite
def arguments_of(draw: st.DrawFn, name: str) -> dict[str, object]:
    text = TEXTS
    if name == "qwen3_coder":
        inner = VALUES
    elif name == "gemma4":
        inner = st.recursive(
            st.none() | st.booleans() | st.integers() | text,
            lambda deep: (
                st.lists(deep, max_size=3) | st.dictionaries(st.text("abc_", min_size=1), deep, max_size=2)
            ),
            max_leaves=4,
        )
    else:
        inner = VALUES if name != "dsml" else VALUES.filter(lambda value: "</" not in json.dumps(value))
    return draw(
        st.fixed_dictionaries(
            {},
            optional={
                "text": text,
                "n": st.integers(-(10**12), 10**12),
                "flag": st.booleans(),
                "list": st.lists(inner, max_size=3).filter(lambda value: "<" not in json.dumps(value)),
            },
        )
    )


@pytest.mark.parametrize("whole_calls", [False, True], ids=["streamed", "whole"])
@pytest.mark.parametrize("name", sorted(FORMATS))
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_calls_and_reasoning_come_out_as_they_were_written(
    name: str, whole_calls: bool, data: st.DataObject
) -> None:
    calls = data.draw(
        st.lists(st.tuples(st.sampled_from(sorted(TOOLS)), arguments_of(name)), min_size=1, max_size=3)
    )
    reasoning = data.draw(st.sampled_from(["", "I should call f.\n\nThen g."]))
    before = data.draw(st.sampled_from(["", "Let me see:"]))
    text = write_reasoning(name, reasoning) if reasoning else ""
    if name == "harmony" and before:
        text += f"<|channel|>commentary<|message|>{before}<|end|><|start|>assistant"
    else:
        text += before
    text += "\n".join(write_call(name, function, arguments) for function, arguments in calls) + "\n"
    events = events_of(
        parser_of(name, whole_calls=whole_calls),
        cut(text, data.draw(st.lists(st.integers(0, 500), max_size=30))),
    )
    assert [(function, json.loads(text)) for function, text in calls_of(events)] == calls
    assert reasoning_of(events) == reasoning
    leftover = "assistant" if name == "harmony" else ""
    assert text_of(events).replace("<|start|>", "").replace(leftover, "").strip() == before


@pytest.mark.parametrize("name", sorted(FORMATS))
@given(text=st.text())
@example(text="  leading and trailing  \n")
def test_without_markup_an_answer_stays_as_it_is(name: str, text: str) -> None:
    if not any(mark in text for mark in ("<", "to=")):
        assert text_of(events_of(parser_of(name), list(text))) == text


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_a_call_is_text_where_no_tools_were_given(name: str) -> None:
    text = write_call(name, "f", {"n": 1})
    events = events_of(parser_of(name, tools=False), [text])
    assert not calls_of(events)
    assert '"n": 1' in text_of(events) or "n" in text_of(events)


def test_arguments_are_streamed_before_the_call_is_complete() -> None:
    for name in FORMATS:
        parser = parser_of(name)
        whole = write_call(name, "f", {"text": "abcdefgh"})
        events = parser.feed(whole[: whole.index("defgh")])
        assert isinstance(events[0], ToolCallStart), name
        assert "abc" in "".join(e.fragment for e in events if isinstance(e, ToolCallArguments)), name


def test_a_broken_call_ends_incomplete_when_streamed_and_is_text_when_whole() -> None:
    text = 'See: <tool_call>{"name": "f", "arguments": {"text": "cut o'
    streamed = events_of(parser_of("hermes"), [text])
    assert streamed[-1] == ToolCallEnd(0, complete=False, raw=text[5:])
    assert events_of(parser_of("hermes", whole_calls=True), [text]) == [TextDelta(text)]


def test_a_broken_call_does_not_hide_the_next_one() -> None:
    text = '<tool_call>nonsense</tool_call><tool_call>{"name": "f", "arguments": {}}</tool_call>'
    events = events_of(parser_of("hermes", whole_calls=True), [text])
    assert calls_of(events) == [("f", "{}")]
    assert text_of(events) == "<tool_call>nonsense</tool_call>"


def test_the_numbers_of_whole_calls_have_no_gaps() -> None:
    good, bad = '{"name": "f", "arguments": {}}', '{"name": "f", "arguments": {]'
    text = "".join(f"<tool_call>{call}</tool_call>" for call in (bad, good, bad, good))
    starts = [
        e for e in events_of(parser_of("hermes", whole_calls=True), [text]) if isinstance(e, ToolCallStart)
    ]
    assert [start.index for start in starts] == [0, 1]


def test_values_are_typed_by_the_schema() -> None:
    text = (
        "<function=f><parameter=text>12</parameter><parameter=n> 12 </parameter>"
        "<parameter=flag>True</parameter>"
        "<parameter=either>null</parameter><parameter=unknown>12</parameter><parameter=list>oops</parameter>"
        "</function>"
    )
    [(_, arguments)] = calls_of(events_of(parser_of("qwen3_coder"), [text]))
    assert json.loads(arguments) == {
        "text": "12",
        "n": 12,
        "flag": True,
        "either": None,
        "unknown": "12",
        "list": "oops",
    }


def test_an_unknown_function_is_passed_on() -> None:
    for name in FORMATS:
        assert calls_of(events_of(parser_of(name), [write_call(name, "nobody", {})])) == [("nobody", "{}")]


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_deep_nesting_and_long_numbers_are_refused_not_fatal(name: str) -> None:
    for value in ("[" * 100_000, "1" * 100_000, '{"a":' * 50_000):
        text = write_call(name, "f", {"list": 0}).replace("0", value)
        events = events_of(parser_of(name, whole_calls=True), [text])
        for _, arguments in calls_of(events):
            json.loads(arguments)


@pytest.mark.parametrize(
    ("family", "template", "dialect"),
    [
        (
            "qwen3_moe",
            '…within <tool_call></tool_call> XML tags:\\n<tool_call>\\n{"name": <function-name>',
            "hermes",
        ),
        ("qwen3_moe", "{{- '<tool_call>\\n<function=' + tool_call.name + '>\\n' }}", "qwen3_coder"),
        ("qwen3_5_moe", "<think>…<tool_call>\n<function=example_function_name>\n<parameter=", "qwen3_coder"),
        ("gpt_oss", "<|start|>assistant<|channel|>commentary to=functions.", "harmony"),
        ("gemma4", "{{- '<|tool_call>call:' + function['name'] + '{' -}}", "gemma4"),
        ("deepseek_v4", None, "dsml"),
        ("gpt_oss", None, "harmony"),
        ("qwen3_moe", "{{ messages }}", None),
        ("qwen3_moe", None, None),
    ],
)
def test_the_chat_template_tells_the_dialect(family: str, template: str | None, dialect: str | None) -> None:
    assert format_of(family, template).dialect == dialect


def test_the_prompts_end_tells_how_an_answer_begins() -> None:
    qwen = format_of("qwen3_5_moe", "<think> <tool_call> <function=")
    assert qwen.opening("<|im_start|>assistant\n<think>\n") is Opening.REASONING
    assert qwen.opening("<|im_start|>assistant\n<think>\n\n</think>\n\n") is Opening.CONTENT
    assert qwen.opening("<|im_start|>assistant\n") is Opening.EITHER
    assert format_of("qwen3_moe", "no reasoning").opening("<think>") is Opening.CONTENT
    gemma4 = format_of("gemma4", None)
    assert gemma4.opening("<|turn>model\n<|channel>thought\n<channel|>") is Opening.CONTENT


def test_reasoning_that_the_prompt_began_needs_no_opening_tag() -> None:
    parser = parser_of("hermes", opening=Opening.REASONING)
    assert events_of(parser, ["I think <th", "ink> so.\n</thi", "nk>\n\nYes."]) == [
        ReasoningDelta("I think <think> so."),
        TextDelta("Yes."),
    ]


def test_a_long_answer_takes_linear_time() -> None:
    """Each character is looked at a bounded number of times, in one piece and in small ones."""
    for name, make in DIALECTS.items():
        prose, call = "word <tool <|cal <｜DS ", write_call(name, "f", {"text": "abc"})
        open_call = write_call(name, "f", {"text": "@"}).split("@")[0]
        for text, size in (
            (prose * (450_000 if name == "hermes" else 20_000), None),
            (open_call + prose * 20_000, None),
            (call * 5_000, None),
            (call * 300, 7),
            (open_call + call * 300, 7),
        ):
            pieces = [text[i : i + size] for i in range(0, len(text), size)] if size else [text]
            parser = make(TOOLS, lambda: "id")
            assert isinstance(parser, Dialect)
            for piece in pieces:
                parser.feed(piece)
            parser.finish()
            assert parser.window.examined <= 4 * len(text) + 80 * len(pieces), name
