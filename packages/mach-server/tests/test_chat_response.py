import json
from typing import Any

from mach_decode.request import GenerationFigures
from mach_server.chat_response import DONE, ChatAnswer

FIGURES = GenerationFigures(
    prompt_tokens=3,
    completion_tokens=2,
    first_token_seconds=0.1,
    decode_seconds=0.1,
    expert_hits=0,
    expert_misses=0,
    bytes_read=0,
    read_seconds=0.0,
)


def parsed(event: bytes) -> dict[str, Any]:
    assert event.startswith(b"data: ") and event.endswith(b"\n\n")
    return json.loads(event[6:])


def test_a_whole_answer_has_openai_s_fields() -> None:
    body = json.loads(ChatAnswer("m", "fp").whole("text", "stop", FIGURES))
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "text", "refusal": None}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["total_tokens"] == 5
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert body["system_fingerprint"] == "fp"


def test_all_chunks_of_an_answer_share_one_id_and_answers_do_not() -> None:
    answer, other = ChatAnswer("m", "fp"), ChatAnswer("m", "fp")
    assert parsed(answer.role_chunk())["id"] == parsed(answer.text_chunk("a"))["id"] == answer.id
    assert answer.id != other.id


def test_usage_is_absent_unless_asked_for_and_then_null_until_the_last_chunk() -> None:
    assert "usage" not in parsed(ChatAnswer("m", "fp").text_chunk("a"))
    answer = ChatAnswer("m", "fp", include_usage=True)
    assert parsed(answer.text_chunk("a"))["usage"] is None
    finish, usage, done = answer.last_chunks("length", FIGURES).split(b"\n\n")[:3]
    assert json.loads(finish[6:])["choices"][0]["finish_reason"] == "length"
    assert json.loads(usage[6:])["choices"] == []
    assert json.loads(usage[6:])["usage"]["prompt_tokens"] == 3
    assert done + b"\n\n" == DONE


def test_a_delta_holds_only_what_is_new() -> None:
    answer = ChatAnswer("m", "fp")
    assert parsed(answer.role_chunk())["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert parsed(answer.text_chunk("a\nb"))["choices"][0]["delta"] == {"content": "a\nb"}
