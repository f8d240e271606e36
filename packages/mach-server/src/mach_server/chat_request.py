"""Owns the request body of `/v1/chat/completions`: what is understood, what is harmless, what is refused.

A field that would change the answer and cannot be honoured is refused by name; none is ignored.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from mach_server.answer_request import AnswerRequest, FunctionTool, ToolRules
from mach_server.completion_fields import CompletionFields
from mach_server.conversation_parts import ContentPart, arguments_of, text_of, tool_rules
from mach_server.limits import Limits
from mach_server.sampling_fields import MOST_ALTERNATIVES, check_count
from mach_server.wire_body import check_model, decode_body, invalid, missing, refuse_unsupported, unsupported

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "prediction": (),
    "store": (False,),
    "verbosity": (),
    "web_search_options": (),
}
"""OpenAI's fields that are not supported, with the values (null apart) that change nothing."""


class FunctionCall(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a call is to; `arguments` is JSON text."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A call that an earlier answer made; `index` is what streaming clients leave in it."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"
    index: int | None = None


class Message(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One message; its last fields are those that clients echo from an earlier answer."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = None

    def for_template(self, path: str) -> dict[str, Any]:
        """What the checkpoint's chat template sees.

        Args:
            path: where the message stands, for errors.

        Raises:
            BadRequestError: a field is missing, or does not belong to this role.
        """
        # Templates know no developer; OpenAI made it the new name of system.
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role}
        reasoning = self.reasoning if self.reasoning_content is None else self.reasoning_content
        self._check_role(path, reasoning)
        content = self.content if self.content is not None else self.refusal or ""
        message["content"] = text_of(content, f"{path}.content")
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if reasoning is not None:
            message["reasoning_content"] = reasoning
        if self.tool_calls:
            message["tool_calls"] = [
                _call_for_template(call, f"{path}.tool_calls[{index}]")
                for index, call in enumerate(self.tool_calls)
            ]
        return message

    def _check_role(self, path: str, reasoning: str | None) -> None:
        assistant = self.role == "assistant"
        if self.content is None and not (
            assistant and (self.tool_calls or reasoning is not None or self.refusal is not None)
        ):
            raise missing(f"{path}.content")
        if self.role == "tool" and self.tool_call_id is None:
            raise missing(f"{path}.tool_call_id")
        if self.role != "tool" and self.tool_call_id is not None:
            raise invalid(f"{path}.tool_call_id", "belongs to messages of the role tool")
        if self.tool_calls and not assistant:
            raise invalid(f"{path}.tool_calls", "belong to messages of the role assistant")


class Function(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a tool is."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A tool; OpenAI's other kinds are refused."""

    type: str
    function: Function | None = None
    custom: Any = None


class NamedFunction(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The function that must be called."""

    name: str


class NamedChoice(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A choice of one function."""

    type: Literal["function"]
    function: NamedFunction


class ChatRequest(CompletionFields, forbid_unknown_fields=True, kw_only=True):
    """The body: what is honoured, then what is harmless, then what is refused unless it changes nothing."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None

    metadata: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    user: Any = None

    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    moderation: Any = None
    n: Any = None
    prediction: Any = None
    store: Any = None
    verbosity: Any = None
    web_search_options: Any = None

    def answer_request(self, model_names: frozenset[str], limits: Limits) -> AnswerRequest:
        """What the body asks for.

        Raises:
            BadRequestError, ModelNotFoundError: naming the field that cannot be honoured.
            SamplingError: a sampling parameter is out of range.
        """
        check_model(self.model, model_names)
        refuse_unsupported(self, _NEUTRAL)
        if not self.messages:
            raise invalid("messages", "must not be empty")
        for name in ("max_tokens", "max_completion_tokens"):
            check_count(name, getattr(self, name), least=1)
        self.check_stream_options()
        check_count("top_logprobs", self.top_logprobs, least=0, most=MOST_ALTERNATIVES)
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs", "needs logprobs: true")
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return AnswerRequest(
            messages=tuple(
                message.for_template(f"messages[{index}]") for index, message in enumerate(self.messages)
            ),
            template_options=self.chat_template_kwargs or {},
            effort=self.reasoning_effort,
            tools=self._tool_rules(limits),
            output=self.output(),
            max_tokens=limit,
            stop=self.stops(limits),
            sampling=self.sampling(limits),
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )

    def _tool_rules(self, limits: Limits) -> ToolRules:
        tools = tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(self.tools or ()))
        choice = self.tool_choice
        if isinstance(choice, NamedChoice):
            # OpenAI: a named choice is one call.
            return tool_rules(tools, "named", name=choice.function.name, parallel=False, most=limits.tools)
        parallel = self.parallel_tool_calls is not False
        return tool_rules(tools, choice or "auto", parallel=parallel, most=limits.tools)


_SHOWN = 80

_DECODER = msgspec.json.Decoder(ChatRequest)


def parse_chat_request(body: bytes) -> ChatRequest:
    """The body as a ChatRequest, its types checked and nothing else.

    Raises:
        BadRequestError: it is not UTF-8 or not JSON, or a field is unknown, missing or of the wrong type.
    """
    return decode_body(_DECODER, body)


def _tool(tool: Tool, param: str) -> FunctionTool:
    if tool.type != "function":
        raise unsupported(f"{param}.type", f"{tool.type[:_SHOWN]!r} is not a function")
    if tool.function is None:
        raise missing(f"{param}.function")
    function = tool.function
    schema = {"type": "object", "properties": {}} if function.parameters is None else function.parameters
    return FunctionTool(
        name=function.name,
        description=function.description,
        parameters=schema,
        strict=bool(function.strict),
        param=param,
    )


def _call_for_template(call: ToolCall, path: str) -> dict[str, Any]:
    function = call.function
    arguments = arguments_of(function.arguments, f"{path}.function.arguments")
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": function.name, "arguments": arguments},
    }
