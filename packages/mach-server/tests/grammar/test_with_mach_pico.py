"""A real model under real grammars: whatever it would rather say, what comes out obeys."""

import json
from collections.abc import Iterator

import mlx.core as mx
import pytest

from mach_decode.engine import Engine, EngineConfig
from mach_decode.sampling import SamplingParams, choose
from mach_decode.token_constraint import apply_bitmask
from mach_server.answer.events import ToolCallEnd, ToolCallStart
from mach_server.answer.formats import answer_parser, format_of
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
from mach_server.grammar.grammar_service import GrammarService
from mach_server.grammar.llguidance_backend import LlguidanceBackend
from mach_server.grammar.vocabulary import vocabulary_of
from mach_server.grammar.xgrammar_backend import XgrammarBackend

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "age", "kind", "tags"],
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine.load(EngineConfig(checkpoint="mach-pico", expert_residency="streaming"))
    yield engine
    engine.close()


@pytest.fixture(scope="module", params=[XgrammarBackend, LlguidanceBackend], ids=lambda backend: backend.name)
def service(request: pytest.FixtureRequest, engine: Engine) -> GrammarService:
    vocabulary = vocabulary_of(
        engine.tokenizer.backend_tokenizer, logits=engine.vocabulary_size, end_tokens=engine.end_tokens
    )
    answer_format = format_of("qwen3_moe", engine.tokenizer.chat_template)
    return GrammarService(vocabulary, answer_format, backends=[request.param(vocabulary)])


def answer(
    engine: Engine, service: GrammarService, form: AnswerForm, sampling: SamplingParams, opening: Opening
) -> tuple[str, bool]:
    """Text of at most 200 tokens, and whether the grammar let it end."""
    constraint = service.constraint(form, opening)
    prompt = engine.render_chat([{"role": "user", "content": "Tell me about a cat."}])
    cache = engine.kv_caches.make()
    tokens: list[int] = []
    last = mx.array([prompt])
    while len(tokens) < 200:
        logits = engine.model(last, cache=cache)[0, -1]
        chosen = choose(apply_bitmask(logits, constraint.mask()), sampling, len(prompt) + len(tokens), ())
        token = int(chosen.item())
        constraint.accept(token)
        if constraint.finished:
            assert token in engine.end_tokens
            break
        tokens.append(token)
        last = chosen.reshape(1, 1)
    return engine.tokenizer.decode(tokens, skip_special_tokens=False), constraint.finished


@pytest.mark.parametrize(
    "sampling",
    [SamplingParams(), SamplingParams(temperature=1.0, seed=1), SamplingParams(temperature=2.0, seed=2)],
    ids=["greedy", "sampled", "hot"],
)
def test_answers_obey_their_schema(engine: Engine, service: GrammarService, sampling: SamplingParams) -> None:
    text, finished = answer(
        engine, service, JsonSchemaForm(schema=SCHEMA, strict=True), sampling, Opening.CONTENT
    )
    assert finished, text
    value = json.loads(text)
    assert list(value) == ["name", "age", "kind", "tags"]
    assert len(value["name"]) <= 12 and 0 <= value["age"] <= 150 and value["kind"] in ("cat", "dog")
    assert len(value["tags"]) <= 3 and all(isinstance(tag, bool) for tag in value["tags"])


def test_choices_and_patterns_are_kept_to(engine: Engine, service: GrammarService) -> None:
    hot = SamplingParams(temperature=2.0, seed=3)
    assert answer(engine, service, ChoiceForm(options=("cat", "category")), hot, Opening.CONTENT)[0] in (
        "cat",
        "category",
    )
    text, _ = answer(engine, service, RegexForm(pattern=r"[0-9]{3}-[a-f]{2}"), hot, Opening.CONTENT)
    assert text[3] == "-" and text[:3].isdigit() and len(text) == 6


def test_a_json_object_is_one_however_far_it_gets(engine: Engine, service: GrammarService) -> None:
    text, finished = answer(engine, service, JsonObjectForm(), SamplingParams(), Opening.CONTENT)
    assert text.lstrip().startswith("{")
    assert not finished or isinstance(json.loads(text), dict)


def test_a_required_call_is_called(engine: Engine, service: GrammarService) -> None:
    tools = (Tool(name="adopt", parameters=SCHEMA, strict=True),)
    text, finished = answer(
        engine,
        service,
        ToolCallForm(tools=tools, choice="required", parallel=False),
        SamplingParams(temperature=1.0, seed=5),
        Opening.CONTENT,
    )
    assert finished, text
    parser = answer_parser(
        format_of("qwen3_moe", engine.tokenizer.chat_template),
        opening=Opening.CONTENT,
        tools={"adopt": SCHEMA},
    )
    events = parser.feed(text) + parser.finish()
    assert isinstance(events[0], ToolCallStart) and events[0].name == "adopt"
    assert events[-1] == ToolCallEnd(0)
