"""Owns the request body of `/v1/responses`: what is understood, what is harmless, what is refused."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from mach_server.answer_request import AnswerRequest, FunctionTool, ToolRules
from mach_server.conversation_parts import tool_rules
from mach_server.errors import BadRequestError
from mach_server.limits import Limits
from mach_server.output_fields import output_rule
from mach_server.responses_input import InputItem, conversation_of
from mach_server.sampling_fields import MOST_ALTERNATIVES, SamplingFields, check_count
from mach_server.wire_body import check_model, decode_body, invalid, refuse_unsupported, unsupported

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "access_programs": (),
    "background": (False,),
    "background_options": (),
    "context_management": ([],),
    "conversation": (),
    "image": (),
    "max_tool_calls": (),
    "moderation": (),
    "previous_response_id": (),
    "prompt": (),
    "store": (False,),
    "truncation": ("disabled",),
}
"""OpenAI's fields that are not supported, with the values (null apart) that change nothing."""

_LOGPROBS = "message.output_text.logprobs"
_INCLUDABLE = (_LOGPROBS, "reasoning.encrypted_content")
"""Reasoning always comes in plain text, so that there is nothing to encrypt."""

_SHOWN = 80


class ResponseTool(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A function; OpenAI's built-in tools have other fields and are refused by their type first."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Reasoning(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How much to reason. No summaries are made, which `auto` allows."""

    effort: str | None = None
    summary: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = None


class TextConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The form of the text."""

    format: dict[str, Any] | None = None
    verbosity: Literal["medium"] | None = None


class NamedTool(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The function that must be called."""

    type: Literal["function"]
    name: str


class ResponseStreamOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`include_obfuscation` is padding against traffic analysis; there is none, whatever it says."""

    include_obfuscation: bool | None = None


class ResponseRequest(SamplingFields, forbid_unknown_fields=True, kw_only=True):
    """The body: what is honoured, then what is harmless, then what is refused unless it changes nothing."""

    model: str
    input: str | list[InputItem]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    metadata: dict[str, Any] | None = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    user: Any = None

    access_programs: Any = None
    background: Any = None
    background_options: Any = None
    context_management: Any = None
    conversation: Any = None
    image: Any = None
    max_tool_calls: Any = None
    moderation: Any = None
    previous_response_id: Any = None
    prompt: Any = None
    store: Any = None
    truncation: Any = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether the text's tokens are told."""
        return _LOGPROBS in (self.include or ()) or bool(self.top_logprobs)

    def answer_request(self, model_names: frozenset[str], limits: Limits) -> AnswerRequest:
        """What the body asks for.

        Raises:
            BadRequestError, ModelNotFoundError: naming the field that cannot be honoured.
            SamplingError: a sampling parameter is out of range.
        """
        check_model(self.model, model_names)
        refuse_unsupported(self, _NEUTRAL)
        check_count("max_output_tokens", self.max_output_tokens, least=1)
        check_count("top_logprobs", self.top_logprobs, least=0, most=MOST_ALTERNATIVES)
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "is only allowed with stream: true")
        for name in self.include or ():
            if name not in _INCLUDABLE:
                raise unsupported("include", f"{name[:_SHOWN]!r} is not made here")
        return AnswerRequest(
            messages=conversation_of(self.input, self.instructions),
            prompt_field="input",
            template_options=self.chat_template_kwargs or {},
            effort=self.reasoning.effort if self.reasoning else None,
            effort_field="reasoning.effort",
            tools=self._tool_rules(limits),
            output=output_rule(self.text.format if self.text else None, "text.format"),
            max_tokens=self.max_output_tokens,
            sampling=self.sampling(limits),
            logprobs=(self.top_logprobs or 0) if self.wants_logprobs else None,
        )

    def _tool_rules(self, limits: Limits) -> ToolRules:
        tools = tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(self.tools or ()))
        choice = self.tool_choice
        if isinstance(choice, NamedTool):
            return tool_rules(tools, "named", name=choice.name, parallel=False, most=limits.tools)
        parallel = self.parallel_tool_calls is not False
        return tool_rules(tools, choice or "auto", parallel=parallel, most=limits.tools)


_DECODER = msgspec.json.Decoder(ResponseRequest)


def parse_response_request(body: bytes) -> ResponseRequest:
    """The body as a ResponseRequest, its types checked and nothing else.

    Raises:
        BadRequestError: it is not UTF-8 or not JSON, or a field is unknown, missing or of the wrong type.
    """
    return decode_body(_DECODER, body)


def _tool(tool: dict[str, Any], param: str) -> FunctionTool:
    kind = tool.get("type")
    if kind != "function":
        raise unsupported(f"{param}.type", f"{str(kind)[:_SHOWN]!r} is not a function")
    try:
        function = msgspec.convert(tool, ResponseTool)
    except msgspec.ValidationError as error:
        raise BadRequestError(f"{param}: {error}", param=param, code="invalid_type") from error
    schema = {"type": "object", "properties": {}} if function.parameters is None else function.parameters
    return FunctionTool(
        name=function.name,
        description=function.description,
        parameters=schema,
        strict=bool(function.strict),
        param=param,
        name_field="name",
        schema_field="parameters",
    )
