from mach_decode.request import GenerationFigures, StepEvent
from mach_server.answer.events import TextDelta, ToolCallEnd
from mach_server.answer.formats import answer_parser, format_of
from mach_server.answer.plain_text import PlainText
from mach_server.answer.think_tags import Opening
from mach_server.answer_reader import AnswerReader
from mach_server.expert_io import ExpertIO

HERMES = format_of("qwen3_moe", "<tool_call><think>")
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


def read(reader: AnswerReader, text: str, size: int = 3, end: str = "stop"):
    """The events of `text`, a token of `size` characters at a time, up to the answer's end."""
    events = []
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    for token, piece in enumerate(pieces):
        events += reader.feed(StepEvent(text=piece, token=token, prefilled=5)).events
        if reader.outcome is not None:
            return events
    return events + reader.feed(StepEvent(token=0, finish_reason=end, prefilled=5)).events  # type: ignore[arg-type]


def reader_of(**options) -> AnswerReader:
    tools = {"f": {"type": "object"}}
    return AnswerReader(answer_parser(HERMES, opening=Opening.EITHER, tools=tools), 5, **options)


def test_text_ends_with_the_engine_s_reason() -> None:
    for reason in ("stop", "length"):
        reader = AnswerReader(PlainText(), 5)
        assert reader.outcome is None
        assert "".join(event.text for event in read(reader, "hello there", end=reason)) == "hello there"
        assert reader.outcome is not None
        assert (reader.outcome.reason, reader.outcome.prompt_tokens) == (reason, 5)
        assert reader.outcome.completion_tokens == 5


def test_a_call_makes_the_reason_tool_calls_unless_the_answer_was_cut() -> None:
    for end, reason in (("stop", "tool_calls"), ("length", "length")):
        reader = reader_of()
        read(reader, CALL, end=end)
        assert reader.outcome is not None and reader.outcome.reason == reason
    reader = reader_of()
    read(reader, CALL[:-20])
    assert reader.outcome is not None and reader.outcome.reason == "stop"


def test_the_first_call_ends_an_answer_that_may_have_but_one() -> None:
    for size in (1, 3, 50, 1000):
        reader = reader_of(one_call=True)
        events = read(reader, CALL + "\n" + CALL + " and text", size)
        assert isinstance(events[-1], ToolCallEnd)
        assert sum(isinstance(event, ToolCallEnd) for event in events) == 1
        assert reader.outcome is not None and reader.outcome.reason == "tool_calls"
    reader = reader_of()
    assert sum(isinstance(event, ToolCallEnd) for event in read(reader, CALL + "\n" + CALL)) == 2


def test_tokens_whose_text_became_reasoning_are_counted() -> None:
    reader = reader_of()
    events = read(reader, "<think>\nabcdefghij\n</think>\n\nanswer", 1)
    assert events[-1] == TextDelta("r")
    assert reader.outcome is not None
    assert 10 <= reader.outcome.reasoning_tokens <= len("<think>\nabcdefghij\n</think>\n\n")
    plain = reader_of()
    read(plain, "answer")
    assert plain.outcome is not None and plain.outcome.reasoning_tokens == 0


def test_the_bill_is_that_of_the_engine_s_last_step() -> None:
    figures = GenerationFigures(
        prompt_tokens=5, completion_tokens=1, first_token_seconds=0.5, decode_seconds=0.25,
        expert_hits=7, expert_misses=3, bytes_read=300, read_seconds=0.5, wait_seconds=0.125,
    )  # fmt: skip
    reader = AnswerReader(PlainText(), 5)
    reader.feed(StepEvent(text="a", token=1, finish_reason="stop", figures=figures))
    assert reader.outcome is not None
    bill = ExpertIO(
        hits=7, misses=3, prefetched=0, prefetch_used=0, bytes_read=300, wait_ms=125.0, compute_ms=625.0
    )
    assert reader.outcome.expert_io == bill


def test_an_answer_cut_after_its_only_call_has_no_bill() -> None:
    reader = reader_of(one_call=True)
    read(reader, CALL + " and text")
    assert reader.outcome is not None and reader.outcome.expert_io is None
