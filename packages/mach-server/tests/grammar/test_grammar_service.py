"""Which library compiles what, caching, bounds, and requests that share nothing."""

import threading

import pytest

from mach_server.answer.formats import AnswerFormat, ThinkMarkup
from mach_server.answer.think_tags import Opening
from mach_server.grammar.answer_forms import (
    AnswerForm,
    ChoiceForm,
    JsonObjectForm,
    JsonSchemaForm,
    RegexForm,
    Tool,
    ToolCallForm,
)
from mach_server.grammar.backend import CompiledGrammar
from mach_server.grammar.errors import GrammarBusyError, GrammarDeadEndError, GrammarRefusedError
from mach_server.grammar.grammar_constraint import GrammarConstraint
from mach_server.grammar.grammar_limits import GrammarLimits
from mach_server.grammar.grammar_service import GrammarService
from mach_server.grammar.llguidance_backend import LlguidanceBackend
from mach_server.grammar.shapes import Shape
from mach_server.grammar.vocabulary import Vocabulary
from mach_server.grammar.xgrammar_backend import XgrammarBackend

FORMAT = AnswerFormat(dialect="hermes", think=ThinkMarkup(begin="<think>", end="</think>"))


class Watched:
    """A backend that says what it was asked, and waits where it is told to."""

    def __init__(self, inner: XgrammarBackend | LlguidanceBackend) -> None:
        self.inner, self.name = inner, inner.name
        self.compiled: list[Shape] = []
        self.gate = threading.Event()
        self.gate.set()

    def compile(self, shape: Shape, *, param: str) -> CompiledGrammar:
        self.compiled.append(shape)
        assert self.gate.wait(60)
        return self.inner.compile(shape, param=param)


@pytest.fixture
def backends(
    xgrammar_backend: XgrammarBackend, llguidance_backend: LlguidanceBackend
) -> tuple[Watched, Watched]:
    return Watched(xgrammar_backend), Watched(llguidance_backend)


def service_of(vocabulary: Vocabulary, backends: tuple[Watched, Watched], **limits: float) -> GrammarService:
    return GrammarService(vocabulary, FORMAT, GrammarLimits(**limits), backends=backends)  # type: ignore[arg-type]


def accepts(constraint: GrammarConstraint, text: str) -> bool:
    for byte in text.encode():
        if not constraint.mask()[byte // 32] >> (byte % 32) & 1:
            return False
        constraint.accept(byte)
    constraint.accept(256)
    return constraint.finished


FORMS: list[tuple[AnswerForm, str, str]] = [
    (JsonObjectForm(), '{"a": [1, {"b": null}]}', "xgrammar"),
    (ChoiceForm(options=("yes", "no", "yes!")), "yes!", "xgrammar"),
    (RegexForm(pattern="^a+b?$"), "aab", "llguidance"),
    (
        JsonSchemaForm(schema={"type": "object", "properties": {"a": {"type": "null"}}}, strict=True),
        "{}",
        "xgrammar",
    ),
    (
        JsonSchemaForm(schema={"type": "object", "properties": {"a": {"type": "null"}}}),
        '{"b": 1}',
        "llguidance",
    ),
    (JsonSchemaForm(schema={"type": "string", "format": "date"}), '"2024-02-10"', "llguidance"),
    (JsonSchemaForm(schema={"type": "string", "maxLength": 100_000}), '"a"', "llguidance"),
    (
        ToolCallForm(tools=(Tool(name="f"),), choice="required"),
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
        "xgrammar",
    ),
]


@pytest.mark.parametrize(("form", "answer", "library"), FORMS, ids=[repr(form)[:50] for form, _, _ in FORMS])
def test_each_form_is_compiled_by_the_library_that_is_right_for_it(
    form: AnswerForm,
    answer: str,
    library: str,
    byte_vocabulary: Vocabulary,
    backends: tuple[Watched, Watched],
) -> None:
    service = service_of(byte_vocabulary, backends)
    for opening, text in (
        (Opening.CONTENT, answer),
        (Opening.REASONING, f"hm {{</think>\n{answer}"),
        (Opening.EITHER, f"<think>\n</think>\n\n{answer}"),
    ):
        assert accepts(service.constraint(form, opening), text)
    compiled = {backend.name: len(backend.compiled) for backend in backends}
    assert compiled == {"xgrammar": 0, "llguidance": 0} | {library: 3}
    service.cache.check()


def test_equal_forms_are_compiled_once_and_share_nothing(
    byte_vocabulary: Vocabulary, backends: tuple[Watched, Watched]
) -> None:
    service = service_of(byte_vocabulary, backends)
    for form in (ChoiceForm(options=("ab", "ac")), RegexForm(pattern="ab|ac")):
        first, second = (service.constraint(form, Opening.CONTENT) for _ in range(2))
        first.accept(ord("a"))
        first.accept(ord("b"))
        assert accepts(second, "ac")
        assert not first.finished
        first.rollback(1)
        first.accept(ord("c"))
        first.accept(256)
    assert [len(backend.compiled) for backend in backends] == [1, 1]


def test_a_form_that_takes_too_long_is_refused_and_too_many_are_put_off(
    byte_vocabulary: Vocabulary, backends: tuple[Watched, Watched]
) -> None:
    service = service_of(byte_vocabulary, backends, workers=1, waiting=2, compile_seconds=0.01)
    backends[0].gate.clear()
    slow = service.submit(ChoiceForm(options=("a",)), Opening.CONTENT)
    with pytest.raises(GrammarRefusedError, match="longer than"):
        service.constraint(ChoiceForm(options=("b",)), Opening.CONTENT)
    with pytest.raises(GrammarBusyError) as busy:
        service.submit(ChoiceForm(options=("c",)), Opening.CONTENT)
    assert busy.value.status == 503
    backends[0].gate.set()
    assert accepts(slow.result(60), "a")
    service.close()


def test_impossible_forms_are_refused(byte_vocabulary: Vocabulary, backends: tuple[Watched, Watched]) -> None:
    service = service_of(byte_vocabulary, backends)
    for form in (
        JsonSchemaForm(schema={"$ref": "#"}),
        JsonSchemaForm(schema={"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
        JsonSchemaForm(schema={"type": "string", "minLength": 5, "maxLength": 2}),
        JsonSchemaForm(schema={"not": {}}),
        RegexForm(pattern=""),
        RegexForm(pattern="a" * 5000),
        RegexForm(pattern="(?=a)"),
        ChoiceForm(options=()),
        ChoiceForm(options=("",)),
    ):
        with pytest.raises(GrammarRefusedError) as refused:
            service.constraint(form, Opening.CONTENT)
        assert refused.value.param == form.param


def test_a_token_that_is_not_allowed_is_an_error(
    byte_vocabulary: Vocabulary, backends: tuple[Watched, Watched]
) -> None:
    constraint = service_of(byte_vocabulary, backends).constraint(ChoiceForm(options=("a",)), Opening.CONTENT)
    with pytest.raises(GrammarDeadEndError, match="token 98"):
        constraint.accept(98)


def test_without_xgrammar_all_is_compiled_by_llguidance(
    byte_vocabulary: Vocabulary, llguidance_backend: LlguidanceBackend
) -> None:
    service = GrammarService(byte_vocabulary, FORMAT, backends=[llguidance_backend])
    assert service.backend_names == ("llguidance",)
    for form, answer, _ in FORMS:
        assert accepts(service.constraint(form, Opening.CONTENT), answer)
