import json
import random
import socket
import time
from typing import Any

import pytest

from mach_server import app, http_server
from mach_server.access import Access
from mach_server.limits import Limits
from mach_server.repeated_reports import HEADS, RepeatedReports, may_be_repeated

MODELS = b"GET /v1/models HTTP/1.1\r\nHost: [::1]\r\n\r\n"
STATS = MODELS.replace(b"models", b"stats")
HEALTH = MODELS.replace(b"/v1/models", b"/health")


class Wire:
    """A connection on which answers are read one by one."""

    def __init__(self, server: Any) -> None:
        self.socket = socket.create_connection(server.address, timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self.socket.makefile("rb")

    def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        self.socket.sendall(data)
        return self.read()

    def read(self, *, body: bool = True) -> tuple[int, dict[str, str], bytes]:
        status = int(self._file.readline().split()[1])
        headers = {}
        while (line := self._file.readline()) != b"\r\n":
            assert line, "the connection was closed"
            name, value = line.decode().split(": ", 1)
            headers[name] = value.rstrip()
        return status, headers, self._file.read(int(headers.get("content-length", 0))) if body else b""

    @property
    def ended(self) -> bool:
        return self._file.read(1) == b""

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each request that might go the short way, whether it did."""
    taken: list[bool] = []
    answer = RepeatedReports.answer

    def watched(self: RepeatedReports, *arguments: Any) -> bytes | None:
        given = answer(self, *arguments)
        taken.append(given is not None)
        return given

    monkeypatch.setattr(RepeatedReports, "answer", watched)
    return taken


def test_the_short_way_gives_the_answer_of_the_long_one(server, short) -> None:
    head = MODELS.replace(b"Host", b"X-Nobody: else\r\nHost")
    with Wire(server) as wire:
        answers = [wire.ask(head) for _ in range(4)]
    assert short == [False, True, True, True]
    ids = {headers.pop("x-request-id") for _, headers, _ in answers}
    assert len(ids) == 4
    assert all(headers.pop("date").endswith("GMT") for _, headers, _ in answers)
    assert all(answer == answers[0] for answer in answers)
    assert list(answers[0][1]) == ["content-length", "content-type"]


def test_heads_are_remembered_for_all_connections_and_contents_are_not(server, short) -> None:
    completed = []
    for _ in range(3):
        with Wire(server) as wire:
            completed.append(json.loads(wire.ask(STATS)[2])["requests"]["completed"])
        server.text(max_tokens=1)
    assert completed == [completed[0], completed[0] + 1, completed[0] + 2]
    assert short[-1]


def test_a_client_s_own_id_comes_back(server, short) -> None:
    with Wire(server) as wire:
        head = MODELS.replace(b"Host", b"X-Request-Id: mine-7\r\nHost")
        assert [wire.ask(head)[1]["x-request-id"] for _ in range(2)] == ["mine-7"] * 2
    assert short == [False, True]


@pytest.mark.parametrize(
    "head",
    [
        MODELS.replace(b"Host", b"Connection: close\r\nHost"),
        MODELS.replace(b"Host", b"Origin: http://[::1]\r\nHost"),
        MODELS.replace(b"Host", b"Content-Length: 0\r\nHost"),
        MODELS.replace(b"Host", b"Expect: 100-continue\r\nHost"),
        MODELS.replace(b"HTTP/1.1", b"HTTP/1.0"),
        MODELS.replace(b"GET", b"HEAD"),
        MODELS.replace(b"/models", b"/models/mach-pico"),
        MODELS.replace(b"/models", b"/nothing"),
        MODELS.replace(b"Host", b"X: " + b"x" * 5000 + b"\r\nHost"),
        MODELS + MODELS,
        MODELS.replace(b"\r\n\r\n", b"\n\n") + MODELS,
    ],
    ids=lambda head: repr(head[:60]),
)
def test_what_may_have_another_answer_or_end_goes_the_long_way(server, short, head: bytes) -> None:
    for _ in range(3):
        with Wire(server) as wire:
            wire.socket.sendall(head)
            answer = wire.read(body=not head.startswith(b"HEAD"))
            if b"Expect" in head and answer[0] == 100:
                answer = wire.read()
            assert answer[0] == (404 if b"nothing" in head else 200)
    assert not any(short)


def test_a_key_is_asked_for_every_time(start_server, short) -> None:
    server = start_server(access=Access(api_key="right"))
    with Wire(server) as wire:
        for key in (b"right", b"wrong", b"right", b"righ", b"right", b"wrong"):
            head = MODELS.replace(b"Host", b"Authorization: Bearer " + key + b"\r\nHost")
            assert wire.ask(head)[0] == (200 if key == b"right" else 401)
        assert wire.ask(MODELS)[0] == 401
    assert short == [False, False, True, False, True, False, False]


def test_a_server_that_is_not_ok_goes_the_long_way(start_server, endless_engine, eventually, short) -> None:
    server = start_server(engine=endless_engine, limits=Limits(drain_seconds=600))
    with Wire(server) as wire, server.stream():
        assert [wire.ask(head)[0] for head in (MODELS, HEALTH, MODELS, HEALTH)] == [200] * 4
        assert short == [False, False, True, True]
        server.begin_stop()
        eventually(lambda: server.service.draining)
        assert [wire.ask(head)[0] for head in (MODELS, HEALTH)] == [503] * 2
        assert not any(short[4:])
        server.end_grace()
    server.stop()


def test_a_dead_engine_is_told_at_once(start_server, endless_engine, short) -> None:
    server = start_server(engine=endless_engine)
    with Wire(server) as wire:
        assert [wire.ask(HEALTH)[0] for _ in range(2)] == [200, 200]
        assert server.service.thread.close(30)
        status, _, body = wire.ask(HEALTH)
        assert (status, json.loads(body)) == (503, {"status": "engine_dead"})


def test_a_bug_on_the_short_way_is_told_as_any_other(server, short, monkeypatch, caplog) -> None:
    with Wire(server) as wire:
        assert [wire.ask(STATS)[0] for _ in range(2)] == [200, 200]

        def broken(service: object) -> None:
            raise RuntimeError("deliberate, in a test")

        monkeypatch.setattr(app, "stats", broken)
        status, headers, _ = wire.ask(STATS)
    assert status == 500 and short[-1] is False
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.getMessage() == f"request {headers['x-request-id']} failed"


def test_both_ways_are_counted(server) -> None:
    def counted() -> int:
        page = server.client.get(f"{server.url}/metrics").text
        (line,) = (s for s in page.splitlines() if 'endpoint="/v1/models",status="200"' in s)
        return int(float(line.split()[-1]))

    server.client.get("/models")
    before = counted()
    with Wire(server) as wire:
        for _ in range(10):
            wire.ask(MODELS)
    assert counted() == before + 10


def test_remembered_heads_are_bounded(server, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[RepeatedReports] = []
    answer = RepeatedReports.answer
    monkeypatch.setattr(RepeatedReports, "answer", lambda self, *a: asked.append(self) or answer(self, *a))
    with Wire(server) as wire:
        for number in range(3 * HEADS):
            assert wire.ask(MODELS.replace(b"Host", b"X: %d\r\nHost" % number))[0] == 200
    assert 0 < len(asked[0]._known) <= HEADS


def test_a_connection_in_use_is_kept_and_an_idle_one_closed(
    start_server, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = 1.0
    monkeypatch.setattr(http_server, "KEEP_ALIVE_SECONDS", keep)
    server = start_server()
    gap = keep
    while gap > keep / 2:  # on a machine that was too busy to ask in time, try again
        with Wire(server) as wire:
            gap, began = 0.0, time.monotonic()
            last = began
            while last < began + 2.5 * keep and gap <= keep / 2:
                assert wire.ask(MODELS)[0] == 200
                time.sleep(0.02)
                gap, last = max(gap, time.monotonic() - last), time.monotonic()
            if gap <= keep / 2:
                assert wire.ended


def test_however_requests_are_cut_and_joined_each_gets_its_answer(server) -> None:
    """Both ways mixed on one connection, whole, in pieces and pipelined."""
    choice = random.Random(5)
    expected = {MODELS: 200, HEALTH: 200, MODELS.replace(b"models", b"nothing"): 404}
    post = b"POST /v1/completions HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 2\r\n\r\n{}"
    expected[post] = 400
    # A body that looks like a request, sent on its own, must not be taken for one.
    smuggler = post.replace(b"Length: 2", b"Length: %d" % len(MODELS))[:-2] + MODELS
    expected[smuggler] = 400
    for _ in range(40):
        with Wire(server) as wire:
            for _ in range(choice.randint(1, 6)):
                sent = [choice.choice(list(expected)) for _ in range(choice.choice((1, 1, 1, 2, 3)))]
                data = b"".join(sent)
                cuts = sorted(choice.sample(range(1, len(data)), choice.choice((0, 0, 1, 3))))
                if sent[0] is smuggler:
                    cuts = [len(smuggler) - len(MODELS)]
                for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                    wire.socket.sendall(data[begin:end])
                    time.sleep(choice.choice((0, 0.002)))
                assert [wire.read()[0] for _ in sent] == [expected[one] for one in sent]


def test_only_one_whole_get_may_be_repeated() -> None:
    assert may_be_repeated(MODELS)
    assert may_be_repeated(MODELS.replace(b"\r\n", b"\n"))
    for other in (b"", MODELS[:-1], MODELS + b"G", MODELS + MODELS, MODELS.replace(b"GET", b"POST")):
        assert not may_be_repeated(other)
    assert not may_be_repeated(MODELS.replace(b"\r\n\r\n", b"\n\n") + MODELS)
