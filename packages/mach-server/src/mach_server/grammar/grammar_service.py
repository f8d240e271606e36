"""Owns the compiling of grammars: which library, in which thread, for how long, and what is kept of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from mach_server.answer.formats import AnswerFormat
from mach_server.answer.think_tags import Opening
from mach_server.grammar.answer_forms import AnswerForm
from mach_server.grammar.answer_shapes import shape_of
from mach_server.grammar.backend import CompiledGrammar, GrammarBackend
from mach_server.grammar.compile_cost import prefers_xgrammar
from mach_server.grammar.errors import GrammarBusyError, GrammarDeadEndError, GrammarRefusedError
from mach_server.grammar.grammar_cache import GrammarCache
from mach_server.grammar.grammar_constraint import GrammarConstraint
from mach_server.grammar.grammar_limits import GrammarLimits
from mach_server.grammar.llguidance_backend import LlguidanceBackend
from mach_server.grammar.shapes import Shape
from mach_server.grammar.vocabulary import Vocabulary
from mach_server.grammar.xgrammar_library import VERSION, xgrammar_version


def has_xgrammar() -> bool:
    """Whether xgrammar is installed in the version that is known to work here."""
    return xgrammar_version() == VERSION


class GrammarService:
    """Makes constraints for one model's answers.

    Attributes:
        limits: what it works under.
        cache: compiled grammars.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        answer_format: AnswerFormat,
        limits: GrammarLimits | None = None,
        *,
        backends: Sequence[GrammarBackend] | None = None,
    ) -> None:
        """Take over a model's vocabulary: up to a second for 150,000 tokens, so not in an event loop.

        Args:
            vocabulary: the model's.
            answer_format: how the model writes tool calls and reasoning.
            limits: bounds.
            backends: for tests; the last one must enforce every shape.
        """
        self.limits = limits or GrammarLimits()
        self.cache = GrammarCache(entries=self.limits.cache_entries, size_bytes=self.limits.cache_bytes)
        self._vocabulary, self._format = vocabulary, answer_format
        self._backends = list(backends) if backends is not None else _backends(vocabulary)
        self._pool = ThreadPoolExecutor(self.limits.workers, thread_name_prefix="mach-grammar")
        self._lock = threading.Lock()
        self._waiting = 0

    @property
    def backend_names(self) -> tuple[str, ...]:
        """The libraries in use, the preferred one first."""
        return tuple(backend.name for backend in self._backends)

    def submit(self, form: AnswerForm, opening: Opening) -> Future[GrammarConstraint]:
        """Begin to make a constraint for one request.

        An event loop awaits `asyncio.wrap_future(…)` for `limits.compile_seconds`, and answers with
        `too_slow(form)` after that. A compilation cannot be stopped: until it ends it takes a place among
        `limits.waiting`.

        Args:
            form: what the answer must look like.
            opening: how answers to the request's prompt begin.

        Returns:
            A future of the constraint, or of a GrammarRefusedError.

        Raises:
            GrammarBusyError: too many are being compiled.
        """
        with self._lock:
            if self._waiting >= self.limits.waiting:
                raise GrammarBusyError(
                    f"{self._waiting} grammars are being compiled already; try again later",
                    code="grammar_busy",
                    retry_after=5,
                )
            self._waiting += 1
        future = self._pool.submit(self._constraint, form, opening)
        future.add_done_callback(self._done)
        return future

    def _done(self, future: Future[GrammarConstraint]) -> None:
        with self._lock:
            self._waiting -= 1

    def constraint(self, form: AnswerForm, opening: Opening) -> GrammarConstraint:
        """The same, waiting for it.

        Raises:
            GrammarRefusedError: the form cannot be enforced, or not in time.
            GrammarBusyError: too many are being compiled.
        """
        try:
            return self.submit(form, opening).result(self.limits.compile_seconds)
        except TimeoutError:
            raise self.too_slow(form) from None

    def too_slow(self, form: AnswerForm) -> GrammarRefusedError:
        """The refusal of a form that takes too long to compile."""
        return GrammarRefusedError(
            f"the form took longer than {self.limits.compile_seconds:g} s to prepare: make it simpler",
            param=form.param,
        )

    def close(self) -> None:
        """Compile nothing more; what is being compiled is waited for by nobody."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _constraint(self, form: AnswerForm, opening: Opening) -> GrammarConstraint:
        shape = shape_of(form, self._format, opening, self.limits)
        grammar = self.cache.find(shape)
        if grammar is None:
            grammar = self._compile(shape, form.param)
            self.cache.keep(shape, grammar)
        return GrammarConstraint(grammar, self._vocabulary.size)

    def _compile(self, shape: Shape, param: str) -> CompiledGrammar:
        first, last = self._backends[0], self._backends[-1]
        backend = first if prefers_xgrammar(shape, self._vocabulary.size) else last
        grammar = backend.compile(shape, param=param)
        try:
            # The first mask finds grammars that allow nothing, and does work that would delay a token.
            GrammarConstraint(grammar, self._vocabulary.size).mask()
        except GrammarDeadEndError as error:
            raise GrammarRefusedError(f"the form allows no answer at all: {error}", param=param) from error
        return grammar


def _backends(vocabulary: Vocabulary) -> list[GrammarBackend]:
    portable = LlguidanceBackend(vocabulary)
    if not has_xgrammar():
        return [portable]
    from mach_server.grammar.xgrammar_backend import XgrammarBackend  # noqa: PLC0415 (an optional dependency)

    return [XgrammarBackend(vocabulary), portable]
