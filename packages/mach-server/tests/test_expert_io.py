import json
from typing import Any

import pytest

from mach_decode.request import GenerationFigures
from mach_server.expert_io import ExpertIO

KEYS = {"hits", "misses", "prefetched", "prefetch_used", "bytes_read", "wait_ms", "compute_ms"}
MESSAGES = [{"role": "user", "content": "def reverse(s):"}]
REQUESTS: dict[str, dict[str, Any]] = {
    "/chat/completions": {"messages": MESSAGES, "max_tokens": 8},
    "/completions": {"prompt": "def reverse(s):", "max_tokens": 8},
    "/responses": {"input": "def reverse(s):", "max_output_tokens": 8, "store": False},
    "/messages": {"messages": MESSAGES, "max_tokens": 8},
}


@pytest.fixture(scope="module")
def narrow(start_server):
    """A bank of a quarter of the experts."""
    return start_server(gb=0.006)


def bill_of(server, path: str, stream: bool) -> dict[str, Any]:
    """The bill in the answer's usage, or in the only event of a stream that has one."""
    body = {"model": server.service.facts.model, "temperature": 0, **REQUESTS[path]}
    if not stream:
        answer = server.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["usage"]["expert_io"]
    if path.endswith("completions"):
        body["stream_options"] = {"include_usage": True}
    text = server.client.post(path, json={**body, "stream": True}).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    usages = [(event.get("response") or event.get("message") or event).get("usage") for event in events]
    bills = [usage["expert_io"] for usage in usages if usage and "expert_io" in usage]
    (bill,) = bills
    return bill


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", REQUESTS)
def test_every_endpoint_bills_what_the_bank_counted(narrow, path: str, stream: bool) -> None:
    def counted() -> dict[str, Any]:
        return narrow.client.get("/cache/stats").json()["streaming_summary"]

    before = counted()
    bill = bill_of(narrow, path, stream)
    after = counted()
    assert set(bill) == KEYS
    for name in ("hits", "misses", "bytes_read"):
        assert bill[name] == after[name] - before[name] > 0
    for name in ("prefetched", "prefetch_used"):
        assert bill[name] == after[name] - before[name]
    waited = 1000 * (after["wait_seconds"] - before["wait_seconds"])
    assert bill["wait_ms"] == pytest.approx(waited, abs=0.001)
    assert bill["wait_ms"] > 0 and bill["compute_ms"] > 0
    last = narrow.stats()["last_request"]
    seconds = (
        last["time_to_first_token_seconds"] - last["queue_seconds"] + 7 / last["decode_tokens_per_second"]
    )
    assert bill["wait_ms"] + bill["compute_ms"] == pytest.approx(1000 * seconds, rel=0.001)
    assert last["expert_wait_seconds"] == pytest.approx(bill["wait_ms"] / 1000, abs=1e-6)


def test_with_every_expert_in_memory_nothing_is_read_or_waited_for(server, start_server, stacked) -> None:
    for whole in (server, start_server(str(stacked), residency="stacked")):
        bill = bill_of(whole, "/chat/completions", False)
        assert bill["hits"] > 0 and bill["compute_ms"] > 0
        assert (bill["misses"], bill["bytes_read"], bill["wait_ms"]) == (0, 0, 0)


def test_mlx_lms_own_experts_are_not_counted(start_server, stacked) -> None:
    bill = bill_of(start_server(str(stacked), residency="unswapped"), "/chat/completions", False)
    assert bill.pop("compute_ms") > 0
    assert bill == dict.fromkeys(KEYS - {"compute_ms"}, 0)


def test_waiting_is_taken_out_of_computing_and_milliseconds_are_rounded() -> None:
    figures = GenerationFigures(
        prompt_tokens=1, completion_tokens=2, first_token_seconds=0.5, decode_seconds=0.25,
        expert_hits=4, expert_misses=2, bytes_read=9, read_seconds=1.0, wait_seconds=0.1234567,
        prefetched=3, prefetch_used=1,
    )  # fmt: skip
    assert ExpertIO.of(figures) == ExpertIO(
        hits=4,
        misses=2,
        prefetched=3,
        prefetch_used=1,
        bytes_read=9,
        wait_ms=123.457,
        compute_ms=626.543,
    )
