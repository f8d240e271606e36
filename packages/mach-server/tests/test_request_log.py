import logging
import re

import httpx
import pytest

from mach_server import app
from mach_server.log_output import REQUESTS


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, eventually):
    """The facts of all requests so far, once there are `count` of them."""
    caplog.set_level(logging.INFO, logger=REQUESTS)

    def told(count: int) -> list[dict]:
        def found() -> list[dict]:
            return [r.request_facts for r in caplog.records if r.name == REQUESTS]

        eventually(lambda: len(found()) >= count)
        return found()

    return told


def test_an_answer_s_line_says_what_it_took_and_not_what_was_said(server, lines, caplog) -> None:
    answer = server.chat("a secret word", max_tokens=4, temperature=0)
    usage = answer.json()["usage"]
    (facts,) = lines(1)
    assert facts["id"] == answer.headers["x-request-id"]
    assert (facts["method"], facts["endpoint"], facts["status"]) == ("POST", "/v1/chat/completions", 200)
    assert (facts["prompt_tokens"], facts["completion_tokens"]) == (usage["prompt_tokens"], 4)
    assert 0 < facts["first_token_ms"] <= facts["duration_ms"]
    assert facts["finish"] == "length" and "error" not in facts
    assert {name: facts[name] for name in usage["expert_io"]} == usage["expert_io"]
    assert facts["bytes_read"] == server.stats()["last_request"]["expert_bytes_read"]
    lines(2)  # or the next test may find the line of this report
    assert "secret" not in str([vars(record) for record in caplog.records])


def test_a_client_s_id_comes_back_on_answers_streams_and_errors(server, lines) -> None:
    for path, body in (
        ("/chat/completions", server.body(max_tokens=1)),
        ("/chat/completions", server.body(max_tokens=1, stream=True)),
        ("/chat/completions", {}),
        ("/nowhere", {}),
        ("/messages/count_tokens", {}),
    ):
        answer = server.client.post(path, json=body, headers={"x-request-id": "mine-1"})
        assert answer.headers.get_list("x-request-id") == ["mine-1"]
    told = lines(5)
    assert {facts["id"] for facts in told} == {"mine-1"}
    assert [facts["status"] for facts in told] == [200, 200, 400, 404, 400]
    assert told[2]["error"] == "missing_required_parameter" and told[3]["error"] == "not_found"


def test_paths_that_no_route_has_are_told_as_other(server, lines) -> None:
    for path in ("/etc/passwd", "/models/a/secret", "/models"):
        server.client.get(path)
    assert [f["endpoint"] for f in lines(3)] == ["other", "/v1/models/{model:path}", "/v1/models"]
    server.client.request("BREW", "/models")
    assert lines(4)[-1]["method"] == "other"


def test_a_client_that_leaves_is_told_as_such(start_server, endless_engine, lines, eventually) -> None:
    server = start_server(engine=endless_engine)
    with server.stream():
        pass
    eventually(lambda: server.stats()["requests"]["open"] == 0)
    connection = server.send_only(server.body())
    eventually(lambda: (server.stats()["running"] or {}).get("completion_tokens"))
    connection.close()
    eventually(lambda: server.stats()["requests"]["open"] == 0)

    def told() -> list[dict]:
        return [f for f in lines(2) if f["endpoint"] == "/v1/chat/completions"]

    left = eventually(lambda: len(told()) == 2 and told())
    assert [(f["status"], f["finish"]) for f in left] == [(200, "client_left"), (499, "client_left")]
    assert all(f["completion_tokens"] > 0 for f in left)


def test_a_bug_is_a_500_with_an_id_that_the_log_knows(server, monkeypatch, caplog) -> None:
    def broken(service: object) -> None:
        raise RuntimeError("deliberate, in a test")

    monkeypatch.setattr(app, "stats", broken)
    answer = server.client.get("/stats")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "deliberate" not in answer.text
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.getMessage() == f"request {answer.headers['x-request-id']} failed"


def test_a_failing_generation_s_log_entry_names_its_request(start_server, failing_engine, caplog) -> None:
    server = start_server(engine=failing_engine)
    answer = server.chat(top_k=2)
    assert answer.status_code == 500
    messages = [record.getMessage() for record in caplog.records]
    assert f"request {answer.headers['x-request-id']}: the generation failed" in messages


def test_every_answer_has_an_id_of_its_own(server) -> None:
    ids = {httpx.get(f"{server.url}/v1/models").headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5 and all(re.fullmatch("req_[0-9a-f]{32}", one) for one in ids)
