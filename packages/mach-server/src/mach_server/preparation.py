"""Owns what is done for a request before the engine sees it: its prompt, its parser, its constraint.

Rendering and tokenizing have a thread of their own. The event loop cannot do it (138,000 tokens take 0.4 s),
and the generation thread must not: a prompt that is refused should not have waited behind somebody's answer.
Tokenizers release the GIL, so that the loop is late by 15 ms at worst meanwhile. It is one thread, because
a tokenizer object refuses to be used twice at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mach_decode.engine import Engine
from mach_decode.errors import PromptTooLongError
from mach_decode.text_stream import text_stream
from mach_decode.token_constraint import TokenConstraint
from mach_decode.token_text import TokenTexts
from mach_server.answer.events import AnswerParser
from mach_server.answer.formats import answer_parser, format_of, reasoning_reader
from mach_server.answer.plain_text import PlainText
from mach_server.answer.think_tags import Opening
from mach_server.answer_request import AnswerRequest
from mach_server.constraint_form import form_of, told_of
from mach_server.conversation_parts import one_system
from mach_server.grammar.errors import GrammarRefusedError
from mach_server.grammar.grammar_service import GrammarService
from mach_server.grammar.vocabulary import vocabulary_of
from mach_server.limits import Limits
from mach_server.reasoning_budget import ReasoningBudget
from mach_server.template_options import TemplateOptions
from mach_server.wire_body import invalid, unsupported

Result = TypeVar("Result")

_TAIL = 24
"""Prompt tokens that tell whether the template has begun the answer's reasoning."""


class Preparation:
    """Prepares requests for one engine.

    Attributes:
        texts: what single tokens say.
        format: how the model writes reasoning and calls.
    """

    def __init__(self, engine: Engine, limits: Limits) -> None:
        """Begin.

        Args:
            engine: just loaded; its tokenizer is used, in a thread of its own, and never its model.
            limits: bounds of prompts.
        """
        self._engine: Engine | None = engine
        self._limits = limits
        self._grammars: GrammarService | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mach-tokenizer")
        tokenizer = engine.tokenizer
        source = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
        self._template = TemplateOptions(source)
        self.texts = TokenTexts(tokenizer)
        adapter = engine.loaded.adapter
        self.format = format_of(None if adapter is None else adapter.model_type, source)
        # The first call may change a tokenizer's settings, which it refuses while another thread decodes.
        engine.encode("warm")

    def close(self) -> None:
        """Let go of the engine, which its own thread frees."""
        self._thread.shutdown(cancel_futures=True)
        if self._grammars is not None:
            self._grammars.close()
        self._engine = self._grammars = None

    async def prompt_of(self, request: AnswerRequest) -> tuple[int, ...]:
        """The tokens that a request's answer goes on from.

        Raises:
            BadRequestError: the chat template cannot do what is asked for, or a token is none.
            TokenizerError: the template refuses the messages, or the text is not Unicode.
            PromptTooLongError: they leave no room for an answer.
        """
        engine = self._present_engine()
        self._check_tokens(tuple(token for token, _ in request.sampling.logit_bias), "logit_bias")
        if request.messages is not None:
            messages, options = one_system(request.messages), self._template.options_of(request)
            tools = [tool.for_template() for tool in request.tools.shown] or None
            tokens = await self._in_thread(lambda: engine.render_chat(messages, tools=tools, **options))
        elif isinstance(request.prompt, str):
            text = request.prompt
            tokens = await self._in_thread(lambda: engine.encode(text))
        else:
            assert request.prompt is not None, "messages or a prompt"
            tokens = request.prompt
            self._check_tokens(tokens, request.prompt_field)
        if len(tokens) >= engine.context_length:
            raise PromptTooLongError(len(tokens), engine.context_length)
        most = self._limits.measured_prompt_tokens
        if request.prompt_logprobs is not None and len(tokens) > most:
            why = f"has {len(tokens)} tokens, but {most} can be measured for one request"
            raise invalid(request.prompt_field, why)
        return tokens

    def check_room(self, prompt: tuple[int, ...], max_tokens: int | None) -> None:
        """Refuse now what the engine would refuse when its turn comes.

        Raises:
            PromptTooLongError, KvBudgetError: prompt and answer do not fit into the context, or the memory.
        """
        self._present_engine().kv_budget.room(len(prompt), max_tokens)

    async def text_of(self, tokens: tuple[int, ...]) -> str:
        """The text of a prompt's tokens."""
        engine = self._present_engine()
        return await self._in_thread(lambda: str(engine.tokenizer.decode(list(tokens))))

    async def opening_of(self, request: AnswerRequest, prompt: tuple[int, ...]) -> Opening:
        """How the answer to a request's prompt begins."""
        if request.messages is None:
            return Opening.CONTENT
        return self.format.opening(await self.text_of(prompt[-_TAIL:]))

    def parser_of(self, request: AnswerRequest, opening: Opening, *, whole: bool) -> AnswerParser:
        """What makes an answer's events of its text.

        Args:
            request: what is asked for.
            opening: how the answer begins.
            whole: whether nothing has to be told before it is certain.
        """
        if request.messages is None:
            return PlainText()
        schemas = {tool.name: tool.parameters for tool in request.tools.shown}
        return answer_parser(self.format, opening=opening, tools=schemas, whole_calls=whole)

    async def constraint_of(self, request: AnswerRequest, opening: Opening) -> TokenConstraint | None:
        """What keeps the answer to its form and its reasoning to its budget; None where it may be anything.

        Raises:
            BadRequestError, UnavailableError: as `_form_constraint`.
        """
        inner = await self._form_constraint(request, opening)
        budget, tag = request.reasoning_budget, self.format.closing
        if budget is None or tag is None or not reasoning_reader(self.format, opening).may_reason:
            return inner
        if request.max_tokens is not None and request.max_tokens <= budget:
            return inner  # the answer ends first
        engine = self._present_engine()
        return ReasoningBudget(
            budget,
            await self._in_thread(lambda: engine.tokenizer.encode(tag, add_special_tokens=False)),
            lambda: text_stream(engine.tokenizer),
            lambda: reasoning_reader(self.format, opening),
            vocabulary_size=engine.vocabulary_size,
            inner=inner,
        )

    async def _form_constraint(self, request: AnswerRequest, opening: Opening) -> TokenConstraint | None:
        """What keeps the answer to its form; None where that is free.

        Raises:
            BadRequestError: the form cannot be enforced, or takes too long to prepare.
            UnavailableError: too many forms are being prepared.
        """
        form = form_of(request)
        if form is None:
            return None
        if request.messages is None and self.format.dialect == "harmony":
            raise unsupported(form.param, "this model's forms need its chat template")
        grammars = await self._in_thread(lambda: self._grammars_for(form.param))
        try:
            async with asyncio.timeout(grammars.limits.compile_seconds):
                return await asyncio.wrap_future(grammars.submit(form, opening))
        except TimeoutError:
            raise grammars.too_slow(form) from None
        except GrammarRefusedError as error:
            raise told_of(error, request) from error

    def _grammars_for(self, param: str) -> GrammarService:
        """The grammars, made when first needed: a large vocabulary takes a second to take over."""
        if self._grammars is None:
            engine = self._present_engine()
            backend = getattr(engine.tokenizer, "backend_tokenizer", None)
            if backend is None:
                raise unsupported(param, "this model's tokenizer does not say what its tokens are")
            vocabulary = vocabulary_of(backend, logits=engine.vocabulary_size, end_tokens=engine.end_tokens)
            self._grammars = GrammarService(vocabulary, self.format)
        return self._grammars

    def _check_tokens(self, tokens: tuple[int, ...], field: str) -> None:
        last = self._present_engine().vocabulary_size - 1
        if tokens and not 0 <= min(tokens) <= max(tokens) <= last:
            raise invalid(field, f"holds a token outside 0…{last}")

    def _present_engine(self) -> Engine:
        engine = self._engine
        assert engine is not None, "not used after close"
        return engine

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
