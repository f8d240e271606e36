"""The chat template, rendered the way transformers renders it.

Owns no text: the template is chat_template.jinja beside this file. Used to make training prompts without
loading a tokenizer; evaluation goes through transformers itself.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

PATH = Path(__file__).with_name("chat_template.jinja")


@cache
def _template() -> Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(PATH.read_text())


def prompt_of(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, *, thinking: bool) -> str:
    """The text that a model is asked to continue: all messages, then the opening of the assistant's turn."""
    options = {} if thinking else {"enable_thinking": False}
    return _template().render(messages=messages, tools=tools, add_generation_prompt=True, **options)
