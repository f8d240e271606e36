"""Compares xgrammar with llguidance: compiling forms, and filling and applying masks.

    python tools/bench/bench_grammar.py [--tokens 150000]

Appends to docs/bench/grammar.csv. The vocabulary is mach-pico's, with random joins of its tokens up to the
size asked for. Times are CPU time (both libraries compile in one thread), so that a busy machine does not
count. `chosen` is the library that the server takes; a form that xgrammar does not enforce exactly is not
given to it.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable

import mlx.core as mx
from bench_record import append_rows
from tokenizers import Tokenizer

from mach.io.checkpoint_path import resolve_checkpoint
from mach_decode.token_constraint import apply_bitmask
from mach_server.answer.formats import format_of
from mach_server.answer.think_tags import Opening
from mach_server.grammar.answer_forms import AnswerForm, JsonObjectForm, JsonSchemaForm, Tool, ToolCallForm
from mach_server.grammar.answer_shapes import shape_of
from mach_server.grammar.backend import GrammarBackend, new_mask
from mach_server.grammar.compile_cost import prefers_xgrammar
from mach_server.grammar.grammar_limits import GrammarLimits
from mach_server.grammar.json_schema import fits_xgrammar
from mach_server.grammar.llguidance_backend import LlguidanceBackend
from mach_server.grammar.shapes import schemas_of
from mach_server.grammar.vocabulary import Vocabulary, vocabulary_of
from mach_server.grammar.xgrammar_backend import XgrammarBackend
from mach_server.grammar.xgrammar_library import load_xgrammar

MASKS = 200


def an_object(**properties: object) -> dict[str, object]:
    """A schema of an object with just these properties, all required."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def schema(strict: bool = True, **properties: object) -> JsonSchemaForm:
    """The form of such an object."""
    return JsonSchemaForm(schema=an_object(**properties), strict=strict)


KINDS = ({"type": "string"}, {"type": "integer"}, {"type": "boolean"}, {"enum": ["a", "b"]})
FIELDS = {f"field_{i}": KINDS[i % 4] for i in range(84)}
TOOLS = tuple(
    Tool(
        name=f"tool_{i}", parameters=an_object(**{f"field_{j}": KINDS[j % 4] for j in range(5)}), strict=True
    )
    for i in range(10)
)
FORMS: dict[str, AnswerForm] = {
    "json_object": JsonObjectForm(),
    "3 fields": schema(a={"type": "string"}, b={"type": "integer"}, c={"enum": ["x", "y"]}),
    "3 fields, open": schema(False, a={"type": "string"}, b={"type": "integer"}, c={"type": "boolean"}),
    "84 fields": schema(**FIELDS),
    "84 fields, open": schema(False, **FIELDS),
    "maxLength 20": schema(a={"type": "string", "maxLength": 20}),
    "maxLength 200": schema(a={"type": "string", "maxLength": 200}),
    "pattern": schema(a={"type": "string", "pattern": "^[a-z]{1,20}$"}),
    "maxItems 100": schema(a={"type": "array", "items": {"type": "integer"}, "maxItems": 100}),
    "10 tools, required": ToolCallForm(tools=TOOLS, choice="required"),
    "10 tools, auto": ToolCallForm(tools=TOOLS),
}


def large_vocabulary(size: int) -> Vocabulary:
    """mach-pico's tokens, then random joins of two or three of them."""
    tokenizer = Tokenizer.from_file(str(resolve_checkpoint("mach-pico") / "tokenizer.json"))
    small = vocabulary_of(tokenizer, logits=8192, end_tokens={8180})
    chooser, words = random.Random(0), [token for token in small.tokens[:8000] if token]
    joins = [b"".join(chooser.sample(words, chooser.choice((2, 2, 3)))) for _ in range(size - small.size)]
    return Vocabulary(tokens=(*small.tokens, *joins), end_tokens=small.end_tokens, encode=small.encode)


def milliseconds(work: Callable[[], object]) -> float:
    """CPU time of one call."""
    began = time.process_time()
    work()
    return 1e3 * (time.process_time() - began)


def measure(backend: GrammarBackend, form: AnswerForm, vocabulary: Vocabulary) -> tuple[float, float]:
    """Milliseconds to compile and make the first mask, and microseconds (median) for each further one."""
    shape = shape_of(form, format_of("qwen3_moe", "<tool_call>"), Opening.CONTENT, GrammarLimits())
    mask = new_mask(vocabulary.size)
    began = time.process_time()
    matcher = backend.compile(shape, param="").matcher()
    matcher.fill(mask)
    compiled = 1e3 * (time.process_time() - began)
    chooser, times = random.Random(1), []
    for _ in range(MASKS):
        plain = [t for t in chooser.sample(range(8000), 800) if mask[t // 32] >> (t % 32) & 1]
        allowed = plain or [t for t in range(vocabulary.size) if mask[t // 32] >> (t % 32) & 1]
        assert matcher.accept(chooser.choice(allowed))
        if matcher.is_terminated():
            matcher.rollback(1)
        times.append(1e3 * milliseconds(lambda: matcher.fill(mask)))
    return compiled, statistics.median(times)


def main() -> None:
    """Measure every form with both libraries."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=150_000)
    vocabulary = large_vocabulary(parser.parse_args().tokens)
    load_xgrammar()  # with transformers, which the server has imported by then
    backends: dict[str, GrammarBackend] = {}
    rows: list[dict[str, object]] = []
    for backend in (XgrammarBackend, LlguidanceBackend):
        took = milliseconds(lambda made=backend: backends.update({made.name: made(vocabulary)}))
        rows.append({"form": "(set-up)", f"{backend.name}_compile_ms": round(took, 1)})
    for name, form in FORMS.items():
        shape = shape_of(form, format_of("qwen3_moe", "<tool_call>"), Opening.CONTENT, GrammarLimits())
        row: dict[str, object] = {"form": name}
        for label, backend in backends.items():
            if label == "xgrammar" and not all(fits_xgrammar(json.loads(text)) for text in schemas_of(shape)):
                continue
            compiled, each = measure(backend, form, vocabulary)
            row |= {f"{label}_compile_ms": round(compiled, 1), f"{label}_mask_us": round(each, 1)}
        row["chosen"] = "xgrammar" if prefers_xgrammar(shape, vocabulary.size) else "llguidance"
        rows.append(row)
    logits, mask = mx.zeros(vocabulary.size), new_mask(vocabulary.size)
    times = [milliseconds(lambda: mx.eval(apply_bitmask(logits, mask))) for _ in range(50)]
    rows.append({"form": "(apply_bitmask)", "mlx_us": round(1e3 * statistics.median(times), 1)})
    append_rows("grammar", rows, tokens=vocabulary.size)


if __name__ == "__main__":
    main()
