"""White space goes at the seams, and nowhere else."""

from mach_server.answer.events import Event, ReasoningDelta, TextDelta, ToolCallEnd, ToolCallStart, joined
from mach_server.answer.trimmed import Trimmed


class Given:
    """Gives one event for each piece of text."""

    def __init__(self, *events: Event) -> None:
        self.events = list(events)

    def feed(self, text: str) -> list[Event]:
        return [self.events.pop(0)]

    def finish(self) -> list[Event]:
        return self.events


def trimmed(*events: Event, fed: int = 0) -> list[Event]:
    parser = Trimmed(Given(*events))
    return joined([event for _ in range(fed) for event in parser.feed("")] + parser.finish())


def test_text_alone_keeps_its_white_space() -> None:
    assert trimmed(TextDelta(" \n a "), TextDelta("\n")) == [TextDelta(" \n a \n")]
    assert trimmed(TextDelta(" \n")) == [TextDelta(" \n")]


def test_between_reasoning_and_text_it_goes() -> None:
    events = (ReasoningDelta("\n hm"), ReasoningDelta("\nso \n"), TextDelta("\n\n"), TextDelta("Yes. \n"))
    expected = [ReasoningDelta("hm\nso"), TextDelta("Yes. \n")]
    for fed in range(5):
        assert trimmed(*events, fed=fed) == expected


def test_around_calls_it_goes() -> None:
    call: tuple[Event, Event] = (ToolCallStart(0, "id", "f"), ToolCallEnd(0))
    assert trimmed(TextDelta("See: \n"), *call, TextDelta("\n"), *call, TextDelta("\n ")) == [
        TextDelta("See:"),
        *call,
        *call,
    ]


def test_the_rest_of_a_broken_call_keeps_it() -> None:
    broken = (ToolCallStart(0, "id", "f"), ToolCallEnd(0, complete=False, raw="…"))
    assert trimmed(*broken, TextDelta(" x")) == [*broken, TextDelta(" x")]
