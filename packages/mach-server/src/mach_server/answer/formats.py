"""Owns the choice of an answer's parser: by the family, and by what its chat template says, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mach_server.answer.call_writer import NewId, random_call_id
from mach_server.answer.dsml import Dsml
from mach_server.answer.events import AnswerParser, Event, joined
from mach_server.answer.gemma4 import Gemma4
from mach_server.answer.harmony import TERMINATORS, Harmony
from mach_server.answer.hermes import Hermes
from mach_server.answer.parameters import Schemas
from mach_server.answer.plain_text import PlainText
from mach_server.answer.qwen3_coder import Qwen3Coder
from mach_server.answer.think_tags import Opening, ThinkTags
from mach_server.answer.trimmed import Trimmed
from mach_server.answer.whole_calls import WholeCalls

DIALECTS: dict[str, Callable[[Schemas, NewId], AnswerParser]] = {
    "hermes": lambda schemas, new_id: Hermes(new_id),
    "qwen3_coder": Qwen3Coder,
    "harmony": lambda schemas, new_id: Harmony(new_id),
    "gemma4": lambda schemas, new_id: Gemma4(new_id),
    "dsml": lambda schemas, new_id: Dsml(new_id),
}
"""What makes each wire format's parser."""

_BY_TEMPLATE = (
    ("｜DSML｜", "dsml"),
    ("<|tool_call>", "gemma4"),
    ("<|channel|>", "harmony"),
    ("<function=", "qwen3_coder"),
    ("<tool_call>", "hermes"),
)
"""Text of a chat template → dialect; the first that is found. `<function=` stands before `<tool_call>`,
because templates with the one have the other too."""

_BY_FAMILY = {"deepseek_v4": "dsml", "gpt_oss": "harmony", "gemma4": "gemma4"}
"""What the family was trained on: for a checkpoint without a chat template, or with one without tools."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkMarkup:
    """A family's reasoning tags.

    Attributes:
        begin: the opening tag.
        end: the closing tag.
        reopens: whether reasoning may begin again later in an answer.
    """

    begin: str
    end: str
    reopens: bool = False


_THINK = ThinkMarkup(begin="<think>", end="</think>")
_GEMMA_THOUGHT = ThinkMarkup(begin="<|channel>thought", end="<channel|>", reopens=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFormat:
    """How a model writes its answers.

    Attributes:
        dialect: a key of `DIALECTS`, or None: the model knows no tools.
        think: its reasoning tags; None where it has none, or where the dialect reads reasoning itself.
    """

    dialect: str | None
    think: ThinkMarkup | None

    @property
    def reasons(self) -> bool:
        """Whether answers may have reasoning in them."""
        return self.think is not None or self.dialect == "harmony"

    @property
    def closing(self) -> str | None:
        """What ends reasoning; None where there is none."""
        if self.dialect == "harmony":
            return TERMINATORS[0]
        return None if self.think is None else self.think.end

    def opening(self, prompt_tail: str) -> Opening:
        """How an answer to a prompt begins.

        Args:
            prompt_tail: the end of the rendered prompt, special tokens written out; 64 characters are enough.
        """
        if self.think is None:
            return Opening.CONTENT
        tail = prompt_tail.rstrip()
        if tail.endswith(self.think.begin):
            return Opening.REASONING
        return Opening.CONTENT if tail.endswith(self.think.end) else Opening.EITHER


def format_of(family: str | None, chat_template: str | None) -> AnswerFormat:
    """A model's format.

    Args:
        family: the registry's key, e.g. `qwen3_moe`; None where only mlx-lm knows the architecture.
        chat_template: the template's text, or None.
    """
    template = chat_template or ""
    found = (dialect for needle, dialect in _BY_TEMPLATE if needle in template)
    dialect = next(found, None if family is None else _BY_FAMILY.get(family))
    if dialect == "harmony":
        return AnswerFormat(dialect=dialect, think=None)
    if dialect == "gemma4":
        return AnswerFormat(dialect=dialect, think=_GEMMA_THOUGHT)
    thinks = dialect == "dsml" or "<think>" in template
    return AnswerFormat(dialect=dialect, think=_THINK if thinks else None)


class _Joined:
    """Joins what one piece of text brought."""

    def __init__(self, inner: AnswerParser) -> None:
        self._inner = inner

    def feed(self, text: str) -> list[Event]:
        return joined(self._inner.feed(text))

    def finish(self) -> list[Event]:
        return joined(self._inner.finish())


def answer_parser(
    answer_format: AnswerFormat,
    *,
    opening: Opening,
    tools: Schemas | None = None,
    whole_calls: bool = False,
    new_id: NewId = random_call_id,
) -> AnswerParser:
    """A parser for one answer.

    Args:
        answer_format: how the model writes.
        opening: `answer_format.opening` of the request's prompt.
        tools: the JSON schemas of the request's tools by name; None or empty: calls are not looked for, and
            what looks like one is text. A call of a function that is not among them is passed on: the client
            tells the model so, which then tries again, as with other servers.
        whole_calls: whether each call is kept until it is complete, so that a broken one comes back as text.
            Otherwise arguments are streamed.
        new_id: makes the calls' ids.
    """
    parser: AnswerParser = PlainText(new_id)
    if answer_format.dialect == "harmony" and not tools:
        parser = Harmony(new_id, calls=False)  # reasoning is read all the same
    elif answer_format.dialect is not None and tools:
        parser = DIALECTS[answer_format.dialect](tools, new_id)
        if whole_calls:
            parser = WholeCalls(parser)
    think = answer_format.think
    if think is not None:
        parser = ThinkTags(parser, begin=think.begin, end=think.end, opening=opening, reopens=think.reopens)
    return _Joined(Trimmed(parser))


class ReasoningReader(AnswerParser, Protocol):
    """A parser that says where it is."""

    @property
    def reasoning(self) -> bool:
        """Whether what comes next is reasoning, as far as is known."""

    @property
    def may_reason(self) -> bool:
        """Whether reasoning may go on or begin."""


def reasoning_reader(answer_format: AnswerFormat, opening: Opening) -> ReasoningReader:
    """What follows the reasoning of one answer, and nothing else in it.

    Args:
        answer_format: how the model writes; one that reasons.
        opening: `answer_format.opening` of the request's prompt.
    """
    think = answer_format.think
    if answer_format.dialect == "harmony":
        return Harmony(calls=False)
    assert think is not None
    return ThinkTags(PlainText(), begin=think.begin, end=think.end, opening=opening, reopens=think.reopens)
