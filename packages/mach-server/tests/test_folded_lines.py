import asyncio
from typing import Any

import pytest

from mach_server import folded_lines
from mach_server.folded_lines import FoldedLines
from mach_server.log_output import REQUESTS
from mach_server.request_record import RequestRecord


def record(id: str, endpoint: str = "/health", status: int = 200) -> RequestRecord:
    return RequestRecord(id=id, method="GET", endpoint=endpoint, status=status)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.setattr(folded_lines, "SECONDS", 0.05)
    return []


def test_the_first_of_its_kind_has_its_line_and_the_others_one_together(written) -> None:
    async def ask() -> None:
        lines = FoldedLines(written.append)
        for number in range(5):
            lines.add(record(f"a{number}"))
            lines.add(record(f"b{number}", "/v1/stats"))
        assert [facts["id"] for facts in written] == ["a0", "b0"]
        await asyncio.sleep(0.1)
        lines.add(record("a5"))

    asyncio.run(ask())
    rest = [facts for facts in written if "id" not in facts]
    assert rest == [
        {"method": "GET", "endpoint": endpoint, "status": 200, "repeated": 4}
        for endpoint in ("/health", "/v1/stats")
    ]
    assert written[-1]["id"] == "a5"


def test_one_alone_has_one_line(written) -> None:
    async def ask() -> None:
        lines = FoldedLines(written.append)
        lines.add(record("a"))
        await asyncio.sleep(0.1)

    asyncio.run(ask())
    assert [facts["id"] for facts in written] == ["a"]


def test_what_was_counted_is_told_at_the_end(written) -> None:
    async def ask() -> None:
        lines = FoldedLines(written.append)
        for number in range(3):
            lines.add(record(f"a{number}"))
        lines.flush()
        assert written[-1]["repeated"] == 2
        await asyncio.sleep(0.1)

    asyncio.run(ask())
    assert len(written) == 2


def test_a_server_s_reports_share_lines_and_its_answers_and_errors_do_not(
    start_server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folded_lines, "SECONDS", 3600.0)
    caplog.set_level("INFO", logger=REQUESTS)
    server = start_server()
    for _ in range(5):
        server.client.get("/models")
        server.client.get("/nowhere")
        server.text(max_tokens=1)
    server.stop()
    told = [r.request_facts for r in caplog.records if r.name == REQUESTS]
    count = [sum(1 for facts in told if facts["status"] == status) for status in (200, 404)]
    assert count == [2 + 5, 5]
    assert told[-1] == {"method": "GET", "endpoint": "/v1/models", "status": 200, "repeated": 4}
