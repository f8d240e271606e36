"""Tools as the conversations see them: name, description, typed parameters, a question with its call.

Owns the JSON schema that is shown to the model and the text of a call. Knows neither where tools come from
(families.py, invention.py) nor how samples are written (conversations.py).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter of a tool. `type` is a JSON schema type; `choices` makes it an enumeration."""

    name: str
    type: str
    description: str = ""
    choices: tuple[str, ...] = ()
    required: bool = True

    def schema(self) -> dict[str, Any]:
        """The parameter's entry under `properties`."""
        entry: dict[str, Any] = {"type": self.type}
        if self.type == "array":
            entry["items"] = {"type": "string"}
        if self.description:
            entry["description"] = self.description
        if self.choices:
            entry["enum"] = list(self.choices)
        return entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One tool."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]

    def schema(self) -> dict[str, Any]:
        """The tool in the form of OpenAI's chat completions API."""
        function: dict[str, Any] = {
            "name": self.name,
            "description": self.description,
            "parameters": {
                "type": "object",
                "properties": {parameter.name: parameter.schema() for parameter in self.parameters},
                "required": [parameter.name for parameter in self.parameters if parameter.required],
            },
        }
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A question that one tool answers, the arguments it asks for, and what comes back.

    `response` is the tool's output, `answer` what the assistant says then; both may be empty.
    """

    tool: Tool
    question: str
    arguments: dict[str, Any] = field(default_factory=dict)
    response: str = ""
    answer: str = ""

    def call(self) -> str:
        """The assistant's text for this call, as the template writes it."""
        arguments = json.dumps(self.arguments, ensure_ascii=False)
        return f'<tool_call>\n{{"name": "{self.tool.name}", "arguments": {arguments}}}\n</tool_call>'


def bucket(text: str, buckets: int) -> int:
    """A stable number in range(buckets) for `text`: decides what is held out, the same on every machine."""
    return int(hashlib.md5(text.lower().encode()).hexdigest(), 16) % buckets
