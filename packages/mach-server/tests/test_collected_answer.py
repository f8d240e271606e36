from mach_server.answer.events import (
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from mach_server.collected_answer import CollectedAnswer


def collected(*events) -> CollectedAnswer:
    answer = CollectedAnswer()
    for event in events:
        answer.add([event])
    return answer


def test_blocks_come_in_order_and_neighbours_are_joined() -> None:
    answer = collected(
        ReasoningDelta("h"),
        ReasoningDelta("m"),
        TextDelta(""),
        TextDelta("a"),
        TextDelta("b"),
        ToolCallStart(0, "c0", "f"),
        ToolCallArguments(0, '{"x":'),
        ToolCallArguments(0, "1}"),
        ToolCallEnd(0),
        TextDelta("c"),
    )
    assert [(block.kind, block.text) for block in answer.blocks] == [
        ("reasoning", "hm"),
        ("text", "ab"),
        ("call", '{"x":1}'),
        ("text", "c"),
    ]
    assert (answer.text, answer.reasoning) == ("abc", "hm")
    assert [(call.id, call.name) for call in answer.calls] == [("c0", "f")]


def test_a_call_that_breaks_off_is_the_text_that_it_was() -> None:
    broken = (ToolCallStart(0, "c0", "f"), ToolCallArguments(0, "{"), ToolCallEnd(0, False, "<raw>"))
    alone = collected(*broken, TextDelta("!"))
    assert [(block.kind, block.text) for block in alone.blocks] == [("text", "<raw>!")]
    after = collected(TextDelta("a"), *broken, TextDelta("!"))
    assert [(block.kind, block.text) for block in after.blocks] == [("text", "a<raw>!")]
