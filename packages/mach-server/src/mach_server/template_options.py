"""Owns what a checkpoint's chat template can be asked for: its variables, reasoning, tools.

A template silently ignores variables that it does not know, so it is asked first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mach_server.answer_request import AnswerRequest
from mach_server.errors import BadRequestError
from mach_server.wire_body import unsupported

_RESERVED = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
"""Arguments of the template's caller, which a request may not take over."""

OFF = "none"
"""The effort that asks for no reasoning."""

ON = "on"
"""The effort that asks for reasoning, as much as the template likes."""

_LEVELS = ("low", "medium", "high")
"""The words that templates with `reasoning_effort` write into the prompt as they stand."""


class TemplateOptions:
    """One checkpoint's chat template, as far as requests can steer it."""

    def __init__(self, source: str | None) -> None:
        """Args: source: the template's text; None if it is a program, which is taken to know everything."""
        self._words = None if source is None else frozenset(re.findall(r"[A-Za-z_]\w*", source))
        self._reasons = source is None or "think" in source or "reasoning" in source

    def knows(self, name: str) -> bool:
        """Whether the template has a variable `name`."""
        return self._words is None or name in self._words

    def options_of(self, request: AnswerRequest) -> dict[str, Any]:
        """The variables for a request's template.

        Raises:
            BadRequestError: the template cannot do what the request asks for; the message names the field.
        """
        options = dict(request.template_options)
        for name in sorted(options):
            if name in _RESERVED:
                raise BadRequestError(
                    f"chat_template_kwargs must not hold {name!r}", param="chat_template_kwargs"
                )
            if not self.knows(name):
                raise unsupported(
                    "chat_template_kwargs", f"this model's chat template knows no {name[:80]!r}"
                )
        if request.effort is not None:
            options |= self._effort(request.effort, request.effort_field, options)
        if request.tools.shown and not self.knows("tools"):
            raise unsupported("tools", "this model's chat template knows no tools")
        return options

    def _effort(self, effort: str, field: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """What says how much to reason; a variable that the client has set itself stays as it is."""
        if effort in _LEVELS and self.knows("reasoning_effort"):
            return {"reasoning_effort": options.get("reasoning_effort", effort)}
        if self.knows("enable_thinking"):
            # On or off is all that such a template knows.
            return {"enable_thinking": options.get("enable_thinking", effort != OFF)}
        if (effort == OFF and not self._reasons) or (effort == ON and self._reasons):
            return {}
        raise unsupported(field, f"this model's chat template cannot be asked for {effort[:80]!r}")
