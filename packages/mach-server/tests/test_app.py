import httpx
import pytest

from mach.server import production_app
from mach_decode.engine import Engine
from mach_server.app import create_app
from mach_server.limits import Limits


class DyingEngine(Engine):
    """Ends its thread as no request can."""

    def generate(self, *_: object):
        yield from ()
        raise SystemExit("deliberate, in a test")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/embeddings", 404, "not_found"),
        ("GET", "/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/models", 405, "method_not_allowed"),
    ],
)
def test_unknown_routes_get_openai_s_error_object(
    server, method: str, path: str, status: int, code: str
) -> None:
    answer = server.client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_the_documented_import_path_leads_here() -> None:
    assert production_app.create_app is create_app


def test_a_server_that_answers_is_healthy(server) -> None:
    answer = httpx.get(f"{server.url}/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize("stream", [True, False])
def test_a_dead_generation_thread_is_told_to_its_client_and_to_health_checks(
    start_server, caplog: pytest.LogCaptureFixture, eventually, stream: bool
) -> None:
    server = start_server(engine=DyingEngine)
    answer = server.chat(stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_dead")
    eventually(lambda: not server.service.thread.alive)
    health = httpx.get(f"{server.url}/health")
    assert (health.status_code, health.json()) == (503, {"status": "engine_dead"})
    assert "retry-after" not in health.headers  # waiting will not help
    again = server.chat()
    assert (again.status_code, again.json()["error"]["code"]) == (503, "engine_dead")
    assert server.stats()["running"] is None
    assert httpx.get(f"{server.url}/metrics").status_code == 200
    assert [record.levelname for record in caplog.records if record.exc_info] == ["CRITICAL"]


def test_while_it_drains_only_its_operator_gets_answers(start_server, endless_engine, eventually) -> None:
    server = start_server(engine=endless_engine, limits=Limits(drain_seconds=600))
    with server.stream() as events:
        # Connections that are open already: no new ones are taken after the drain.
        server.begin_stop()
        eventually(lambda: server.service.draining)
        assert server.client.get("/models").status_code == 503
        health = server.client.get(f"{server.url}/health")
        assert (health.status_code, health.json()) == (503, {"status": "draining"})
        assert int(health.headers["retry-after"]) > 0
        assert b"mach_requests_open 1.0" in server.client.get(f"{server.url}/metrics").content
        server.end_grace()
        assert list(events)[-1]["error"]["code"] == "shutting_down"
    server.stop()
