"""Owns the one form that every endpoint's body is translated to: what is asked of the model, and how.

It knows no wire format. `chat_request`, `completions_request`, `responses_request` and `messages_request`
make it, `answer_endpoint` runs it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from mach_decode.sampling import SamplingParams

ToolMode = Literal["auto", "none", "required", "named"]
OutputKind = Literal["json_object", "json_schema", "regex", "choice", "grammar"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionTool:
    """A function that the model may call.

    Attributes:
        parameters: a JSON schema of its arguments, an object.
        strict: whether the arguments are bound to the schema even where the model calls of its own accord.
        param: the request field that holds it, for errors.
        name_field: where its name stands in that field.
        schema_field: where its parameters do.
    """

    name: str
    description: str | None = None
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool = False
    param: str = "tools"
    name_field: str = "function.name"
    schema_field: str = "function.parameters"

    def for_template(self) -> dict[str, Any]:
        """The form that chat templates know, which is OpenAI's."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.parameters
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRules:
    """Which tools there are and whether the model must use them.

    Attributes:
        tools: in the request's order; all are shown to the model unless the mode is `none`.
        mode: `auto` leaves the choice to the model, `required` and `named` make it call.
        name: the function that a `named` call must be to.
        parallel: whether one answer may hold several calls.
    """

    tools: tuple[FunctionTool, ...] = ()
    mode: ToolMode = "auto"
    name: str | None = None
    parallel: bool = True

    @property
    def shown(self) -> tuple[FunctionTool, ...]:
        """The tools that the model is told of."""
        return () if self.mode == "none" else self.tools

    @property
    def forced(self) -> bool:
        """Whether an answer without a call is not allowed."""
        return self.mode in ("required", "named")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputRule:
    """The form that the answer's text must have.

    Attributes:
        kind: what `value` is.
        value: a JSON schema, a regular expression, a tuple of choices or a grammar; None for `json_object`.
        strict: whether a schema's objects have only the properties that it names, unless it says otherwise.
        param: the request field that asked for it, for errors.
    """

    kind: OutputKind
    value: Any = None
    strict: bool = False
    param: str = "response_format"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRequest:
    """One answer to make.

    Attributes:
        messages: a conversation for the chat template; None when `prompt` stands instead.
        prompt: text or token ids to go on from, without a template.
        prompt_field: the request field that holds either, for errors.
        template_options: variables for the chat template that the client set.
        effort: how much reasoning is asked for: a word of the endpoint's; None leaves it to the template.
        effort_field: the request field that asked for it.
        reasoning_budget: tokens of reasoning at most; None does not bound it.
        tools: functions, and whether they must be called.
        output: the form that the text must have; None leaves it free.
        max_tokens: tokens to generate at most; None is what the context holds; 0 needs `prompt_logprobs`.
        stop: strings that end the answer.
        sampling: how tokens are chosen.
        logprobs: how many alternatives to tell for each token; None measures nothing.
        prompt_logprobs: the same for the prompt.
    """

    messages: tuple[dict[str, Any], ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    prompt_field: str = "messages"
    template_options: dict[str, Any] = field(default_factory=dict)
    effort: str | None = None
    effort_field: str = "reasoning_effort"
    reasoning_budget: int | None = None
    tools: ToolRules = field(default_factory=ToolRules)
    output: OutputRule | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    sampling: SamplingParams
    logprobs: int | None = None
    prompt_logprobs: int | None = None
