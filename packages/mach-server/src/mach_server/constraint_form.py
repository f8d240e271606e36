"""Owns what a request's rules mean for the form of its answer: which of them a grammar has to enforce."""

from __future__ import annotations

from mach_server.answer_request import AnswerRequest, FunctionTool, OutputRule, ToolRules
from mach_server.grammar.answer_forms import (
    AnswerForm,
    ChoiceForm,
    JsonObjectForm,
    JsonSchemaForm,
    RegexForm,
    Tool,
    ToolCallForm,
)
from mach_server.grammar.errors import GrammarRefusedError
from mach_server.wire_body import unsupported

_TOOLS = "tools"
_SCHEMA = "function.parameters"
_NAME = "function.name"


def form_of(request: AnswerRequest) -> AnswerForm | None:
    """The form to enforce; None for an answer that may be anything.

    Calls that the model makes of its own accord are left free unless a tool is strict: what is no proper
    call then comes back as text.

    Raises:
        BadRequestError: the request asks for two forms at once, or for one that there is no way to enforce.
    """
    rules, output = request.tools, request.output
    calls = rules.forced or any(tool.strict for tool in rules.shown)
    if output is None:
        return _calls(rules) if calls else None
    if rules.shown:
        raise unsupported(output.param, "not beside tools: the answer can have one form")
    return _content(output)


def told_of(error: GrammarRefusedError, request: AnswerRequest) -> GrammarRefusedError:
    """`error` with the names that the fields have in the request's own API."""
    param = error.param or ""
    if not param.startswith(f"{_TOOLS}["):
        return error
    index = int(param[len(_TOOLS) + 1 : param.index("]")])
    tool = _enforced(request.tools)[index]
    inner = param.partition("].")[2]
    inner = inner.replace(_SCHEMA, tool.schema_field).replace(_NAME, tool.name_field)
    return GrammarRefusedError(str(error), param=f"{tool.param}.{inner}", keyword=error.keyword)


def _content(output: OutputRule) -> AnswerForm:
    match output.kind:
        case "json_object":
            return JsonObjectForm(param=output.param)
        case "json_schema":
            return JsonSchemaForm(schema=output.value, strict=output.strict, param=output.param)
        case "regex":
            return RegexForm(pattern=output.value, param=output.param)
        case "choice":
            return ChoiceForm(options=output.value, param=output.param)
        case "grammar":
            raise unsupported(output.param, "use a JSON schema, a regular expression or a choice")


def _calls(rules: ToolRules) -> ToolCallForm:
    tools = tuple(
        Tool(name=tool.name, parameters=tool.parameters, strict=tool.strict) for tool in _enforced(rules)
    )
    return ToolCallForm(
        tools=tools, choice="required" if rules.forced else "auto", parallel=rules.parallel, param=_TOOLS
    )


def _enforced(rules: ToolRules) -> list[FunctionTool]:
    return [tool for tool in rules.shown if rules.mode != "named" or tool.name == rules.name]
