"""Owns the way from a form to a shape, reasoning included."""

from __future__ import annotations

from mach_server.answer.formats import AnswerFormat
from mach_server.answer.think_tags import Opening
from mach_server.grammar.answer_forms import (
    AnswerForm,
    ChoiceForm,
    JsonObjectForm,
    JsonSchemaForm,
    RegexForm,
    ToolCallForm,
)
from mach_server.grammar.errors import GrammarRefusedError
from mach_server.grammar.grammar_limits import GrammarLimits
from mach_server.grammar.json_schema import canonical, normalised
from mach_server.grammar.shapes import Json, OneOf, Regex, Repeated, Sequence, Shape, Text, Until, optional
from mach_server.grammar.tool_shapes import tool_calls

_HARMONY_ANALYSIS = optional(
    Sequence((Text("<|channel|>analysis<|message|>"), Until("<|end|>"), Text("<|start|>assistant")))
)
_HARMONY_FINAL = Text("<|channel|>final<|message|>")
_LINE_ENDS = Repeated(Text("\n"), 0, 2)


def shape_of(form: AnswerForm, answer_format: AnswerFormat, opening: Opening, limits: GrammarLimits) -> Shape:
    """What an answer of this form looks like, from its first character on.

    Reasoning stays free; the form begins after it.

    Raises:
        GrammarRefusedError: the form cannot be enforced.
    """
    if isinstance(form, ToolCallForm):
        shape = tool_calls(form, answer_format.dialect, limits)
        if answer_format.dialect == "harmony":
            return shape if form.choice == "auto" else Sequence((_HARMONY_ANALYSIS, shape))
    else:
        shape = _content(form, limits)
        if answer_format.dialect == "harmony":
            return Sequence((_HARMONY_ANALYSIS, _HARMONY_FINAL, shape))
    return _after_reasoning(shape, answer_format, opening)


def _after_reasoning(shape: Shape, answer_format: AnswerFormat, opening: Opening) -> Shape:
    think = answer_format.think
    if think is None or opening is Opening.CONTENT:
        return shape
    if opening is Opening.REASONING:
        return Sequence((Until(think.end), _LINE_ENDS, shape))
    return Sequence((optional(Sequence((Text(think.begin), Until(think.end), _LINE_ENDS))), shape))


def _content(form: AnswerForm, limits: GrammarLimits) -> Shape:
    match form:
        case JsonObjectForm():
            return Json(canonical({"type": "object", "additionalProperties": {}}))
        case JsonSchemaForm(schema=schema, strict=strict, param=param):
            return Json(canonical(normalised(schema, param=param, limits=limits, closed=strict)))
        case RegexForm(pattern=pattern, param=param):
            if not 0 < len(pattern) <= limits.pattern_length:
                raise GrammarRefusedError(
                    f"a regular expression must have 1 to {limits.pattern_length} characters", param=param
                )
            return Regex(_unanchored(pattern))
        case ChoiceForm(options=options, param=param):
            if not 0 < len(options) <= limits.choices or not all(options):
                raise GrammarRefusedError(
                    f"a choice must have 1 to {limits.choices} options, none of them empty", param=param
                )
            if sum(map(len, options)) > limits.schema_bytes:
                raise GrammarRefusedError(
                    f"the options of a choice must not have more than {limits.schema_bytes} characters",
                    param=param,
                )
            return OneOf(tuple(Text(option) for option in dict.fromkeys(options)))
    raise AssertionError("every form has a shape")


def _unanchored(pattern: str) -> str:
    """The pattern without anchors at its ends: it must match as a whole anyway."""
    pattern = pattern.removeprefix("^")
    backslashes = len(pattern) - 1 - len(pattern[:-1].rstrip("\\"))
    return pattern[:-1] if pattern.endswith("$") and backslashes % 2 == 0 else pattern
