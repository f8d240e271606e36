"""Owns the request bodies of Anthropic's `/v1/messages` and `/v1/messages/count_tokens`.

Like Anthropic's own API it refuses unknown fields. What cannot be honoured is refused by name.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import msgspec

from mach_server.answer_request import AnswerRequest, FunctionTool, ToolMode, ToolRules
from mach_server.conversation_parts import tool_rules
from mach_server.limits import Limits
from mach_server.messages_content import ContentBlock, messages_of, system_text
from mach_server.output_fields import output_rule
from mach_server.sampling_fields import check_count, sampling_of, stops_of
from mach_server.template_options import OFF, ON
from mach_server.wire_body import check_model, decode_body, invalid, needed, refuse_unsupported, unsupported

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "container": (),
    "context_management": ({}, {"edits": []}),
    "diagnostics": (),
    "inference_geo": (),
    "mcp_servers": ([],),
    "speed": ("standard",),
    "user_profile_id": (),
    "workspace_id": (),
}
"""Anthropic's fields that are not supported, with the values (null apart) that change nothing."""

_MODES: dict[str, ToolMode] = {"auto": "auto", "any": "required", "tool": "named", "none": "none"}
"""Anthropic's words for whether the model must use a tool."""

_SHOWN = 80


class MessageParam(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One message."""

    role: Literal["user", "assistant"]
    content: str | list[ContentBlock]


class ToolParam(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A tool of the client's own; Anthropic's are refused by their type."""

    name: str
    input_schema: dict[str, Any] | None = None
    description: str | None = None
    type: str | None = None
    strict: bool | None = None
    input_examples: list[Any] | None = None
    cache_control: Any = None
    eager_input_streaming: bool | None = None
    defer_loading: Literal[False] | None = None


class ToolChoiceParam(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Whether the model must use a tool."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Whether to reason, and for how many tokens at most."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: Literal["summarized"] | None = None


class OutputConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How much to reason, and the form of the text."""

    effort: str | None = None
    format: dict[str, Any] | None = None


class CountRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of count_tokens: what a prompt consists of."""

    model: str
    messages: list[MessageParam]
    system: str | list[ContentBlock] | None = None
    tools: list[ToolParam] | None = None
    tool_choice: ToolChoiceParam | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None

    cache_control: Any = None

    container: Any = None
    context_management: Any = None
    diagnostics: Any = None
    inference_geo: Any = None
    mcp_servers: Any = None
    speed: Any = None
    user_profile_id: Any = None
    workspace_id: Any = None

    def answer_request(self, model_names: frozenset[str], limits: Limits) -> AnswerRequest:
        """What the body asks for, as far as the prompt goes.

        Raises:
            BadRequestError, ModelNotFoundError: naming the field that cannot be honoured.
        """
        check_model(self.model, model_names)
        refuse_unsupported(self, _NEUTRAL)
        if not self.messages:
            raise invalid("messages", "must not be empty")
        if self.messages[-1].role == "assistant":
            raise unsupported("messages", "the last message must be the user's: answers are not prefilled")
        system = [] if self.system is None else [{"role": "system", "content": system_text(self.system)}]
        conversation = [
            message
            for index, given in enumerate(self.messages)
            for message in messages_of(given.role, given.content, f"messages[{index}].content")
        ]
        effort, field = self._effort()
        return AnswerRequest(
            messages=(*system, *conversation),
            effort=effort,
            effort_field=field,
            reasoning_budget=self._budget(),
            tools=self._tool_rules(limits),
            output=self._output(),
            sampling=sampling_of(limits=limits),
        )

    def _effort(self) -> tuple[str | None, str]:
        """The effort and the field that asks for it. Without either the template decides."""
        asked = self.output_config.effort if self.output_config else None
        if self.thinking is not None and self.thinking.type == "disabled":
            return OFF, "thinking"
        if asked is not None:
            return asked, "output_config.effort"
        enabled = self.thinking is not None and self.thinking.type == "enabled"
        return (ON if enabled else None), "thinking"

    def _budget(self) -> int | None:
        thinking = self.thinking
        if thinking is None or thinking.budget_tokens is None:
            return None
        if thinking.type != "enabled":
            raise invalid("thinking.budget_tokens", f"has no meaning with type {thinking.type}: leave it out")
        check_count("thinking.budget_tokens", thinking.budget_tokens, least=1)
        return thinking.budget_tokens

    def _output(self) -> Any:
        return output_rule(self.output_config.format if self.output_config else None, "output_config.format")

    def _tool_rules(self, limits: Limits) -> ToolRules:
        tools = tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(self.tools or ()))
        choice = self.tool_choice or ToolChoiceParam(type="auto")
        return tool_rules(
            tools,
            _MODES[choice.type],
            name=choice.name if choice.type == "tool" else None,
            parallel=not choice.disable_parallel_tool_use,
            most=limits.tools,
            required="any",
        )


class MessagesRequest(CountRequest, forbid_unknown_fields=True, kw_only=True):
    """The body of `/v1/messages`."""

    max_tokens: int
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None

    metadata: Any = None
    service_tier: Any = None

    def answer_request(self, model_names: frozenset[str], limits: Limits) -> AnswerRequest:
        """What the body asks for; raises as `CountRequest.answer_request`, and SamplingError."""
        check_count("max_tokens", self.max_tokens, least=1)
        if self.temperature is not None and self.temperature > 1.0:
            raise invalid("temperature", f"must be from 0 to 1, not {self.temperature}")
        sampling = sampling_of(
            temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, limits=limits
        )
        return replace(
            super().answer_request(model_names, limits),
            max_tokens=self.max_tokens,
            stop=stops_of(self.stop_sequences, limits.stop_sequences, limits, "stop_sequences"),
            sampling=sampling,
        )


_DECODER = msgspec.json.Decoder(MessagesRequest)
_COUNT_DECODER = msgspec.json.Decoder(CountRequest)


def parse_messages_request(body: bytes) -> MessagesRequest:
    """The body of `/v1/messages`, its types checked and nothing else; raises BadRequestError."""
    return decode_body(_DECODER, body)


def parse_count_request(body: bytes) -> CountRequest:
    """The body of count_tokens, its types checked and nothing else; raises BadRequestError."""
    return decode_body(_COUNT_DECODER, body)


def _tool(tool: ToolParam, param: str) -> FunctionTool:
    if tool.type not in (None, "custom"):
        raise unsupported(f"{param}.type", f"{tool.type[:_SHOWN]!r} is a tool of Anthropic's")
    if tool.input_examples:
        raise unsupported(f"{param}.input_examples")
    return FunctionTool(
        name=tool.name,
        description=tool.description,
        parameters=needed(tool.input_schema, f"{param}.input_schema"),
        strict=bool(tool.strict),
        param=param,
        name_field="name",
        schema_field="input_schema",
    )
