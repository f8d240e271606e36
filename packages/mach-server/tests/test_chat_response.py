import json
from typing import Any

from mach_decode.logprobs import TokenLogprob
from mach_server.answer.events import (
    Event,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from mach_server.answer_reader import AnswerPart
from mach_server.chat_response import ChatWriter
from mach_server.collected_answer import CollectedAnswer, FinishReason, Outcome
from mach_server.event_stream import DONE

CALL = [
    ToolCallStart(0, "c1", "f"),
    ToolCallArguments(0, '{"x"'),
    ToolCallArguments(0, ": 1}"),
    ToolCallEnd(0),
]


class Texts:
    """A tokenizer whose tokens are letters."""

    def bytes_of(self, token: int) -> bytes:
        return bytes([token])

    def text_of(self, token: int) -> str:
        return chr(token)


def writer(**options: Any) -> ChatWriter:
    return ChatWriter("m", "fp", Texts(), **options)  # type: ignore[arg-type]


def outcome(reason: FinishReason = "stop") -> Outcome:
    return Outcome(reason=reason, stop=None, prompt_tokens=3, completion_tokens=2, reasoning_tokens=1)


def part(*events: Event, logprobs: tuple[TokenLogprob, ...] = ()) -> AnswerPart:
    return AnswerPart(list(events), logprobs, ())


def collected(*events: Event) -> CollectedAnswer:
    answer = CollectedAnswer()
    answer.add(events)
    return answer


def parsed(event: bytes) -> dict[str, Any]:
    assert event.startswith(b"data: ") and event.endswith(b"\n\n")
    return json.loads(event[6:])


def test_a_whole_answer_has_openai_s_fields() -> None:
    body = json.loads(writer().whole(collected(TextDelta("text")), outcome()))
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "text", "refusal": None}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["choices"][0]["logprobs"] is None
    assert body["usage"]["total_tokens"] == 5
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 1}
    assert body["system_fingerprint"] == "fp"


def test_all_chunks_of_an_answer_share_one_id_and_answers_do_not() -> None:
    answer, other = writer(), writer()
    chunks = (answer.begin(1), answer.part(part(TextDelta("a"))))
    assert {parsed(chunk)["id"] for chunk in chunks} == {answer.id}
    assert answer.id != other.id


def test_usage_is_absent_unless_asked_for_and_then_null_until_the_last_chunk() -> None:
    assert "usage" not in parsed(writer().part(part(TextDelta("a"))))
    answer = writer(include_usage=True)
    assert parsed(answer.part(part(TextDelta("a"))))["usage"] is None
    finish, usage, done = answer.end(outcome("length")).split(b"\n\n")[:3]
    assert json.loads(finish[6:])["choices"][0]["finish_reason"] == "length"
    assert json.loads(usage[6:])["choices"] == []
    assert json.loads(usage[6:])["usage"]["prompt_tokens"] == 3
    assert done + b"\n\n" == DONE


def test_a_delta_holds_only_what_is_new() -> None:
    answer = writer()
    assert parsed(answer.begin(1))["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert parsed(answer.part(part(TextDelta("a\nb"))))["choices"][0]["delta"] == {"content": "a\nb"}
    assert answer.part(part()) == b""


def test_reasoning_has_both_of_its_names() -> None:
    both = {"reasoning": "hm", "reasoning_content": "hm"}
    assert parsed(writer().part(part(ReasoningDelta("hm"))))["choices"][0]["delta"] == both
    body = json.loads(writer().whole(collected(ReasoningDelta("hm"), TextDelta("a")), outcome()))
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "a", "refusal": None, **both}


def test_a_call_s_id_and_name_come_once_and_its_arguments_in_pieces() -> None:
    chunks = [parsed(event + b"\n\n") for event in writer().part(part(*CALL)).split(b"\n\n")[:-1]]
    assert [chunk["choices"][0]["delta"]["tool_calls"] for chunk in chunks] == [
        [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"x"'}}],
        [{"index": 0, "function": {"arguments": ": 1}"}}],
    ]
    message = json.loads(writer().whole(collected(*CALL), outcome("tool_calls")))["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    ]


def test_logprobs_wait_for_a_chunk_and_are_told_once() -> None:
    answer = writer(logprobs=True)
    first = TokenLogprob(token=65, logprob=-0.5, top=((65, -0.5), (66, -1e9)))
    second = TokenLogprob(token=66, logprob=-1.0)
    assert answer.part(part(logprobs=(first,))) == b""
    told = parsed(answer.part(part(TextDelta("AB"), logprobs=(second,))))["choices"][0]["logprobs"]
    assert [entry["token"] for entry in told["content"]] == ["A", "B"]
    assert told["content"][0] == {
        "token": "A",
        "logprob": -0.5,
        "bytes": [65],
        "top_logprobs": [
            {"token": "A", "logprob": -0.5, "bytes": [65]},
            {"token": "B", "logprob": -9999.0, "bytes": [66]},
        ],
    }
    assert parsed(answer.part(part(TextDelta("C"))))["choices"][0]["logprobs"] is None
    answer.part(part(logprobs=(first,)))
    end = parsed(answer.end(outcome()).removesuffix(DONE))
    assert [entry["token"] for entry in end["choices"][0]["logprobs"]["content"]] == ["A"]
