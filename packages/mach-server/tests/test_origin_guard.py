import asyncio

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mach_server.access import Access
from mach_server.limits import Limits
from mach_server.origin_guard import OriginGuard, checked_host, checked_origin
from mach_server.request_record import RequestRecord, attach

PAGE = "https://chat.example.org"


@pytest.fixture(scope="module")
def allowing(start_server):
    hosts = frozenset({"box.lan"})
    return start_server(access=Access(cors_origins=(PAGE, "app://mach"), trusted_hosts=hosts))


@pytest.fixture(scope="module")
def all_allowed(start_server):
    return start_server(access=Access(cors_origins=("*",), trusted_hosts=None))


def plain_post(server, **headers: str) -> httpx.Response:
    """What a page may send to any address without asking first."""
    content = httpx.Request("POST", server.url, json=server.body(max_tokens=1)).content
    headers = {"content-type": "text/plain", **headers}
    return httpx.post(f"{server.url}/v1/chat/completions", content=content, headers=headers)


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost", "file://", "x", "://"],
)
def test_a_foreign_page_cannot_make_the_engine_work(server, origin: str) -> None:
    before = server.stats()["requests"]
    answer = plain_post(server, origin=origin)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
    assert "--cors-origin" in answer.json()["error"]["message"]
    assert "access-control-allow-origin" not in answer.headers
    assert httpx.get(f"{server.url}/v1/models", headers={"origin": origin}).status_code == 403
    assert server.stats()["requests"] == before


def test_the_server_s_own_page_may_use_it(server) -> None:
    assert plain_post(server, origin=server.url).status_code == 200
    port = server.address[1]
    headers = {"host": f"LOCALHOST:{port}", "origin": f"http://localhost:{port}"}
    assert plain_post(server, **headers).status_code == 200
    assert plain_post(server, host="localhost", origin="http://localhost:80").status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "[::1", "a@b", "-"]
)
def test_a_name_that_could_have_been_rebound_is_refused(server, host: str) -> None:
    for headers in ({"host": host}, {"host": host, "origin": f"http://{host}"}):
        answer = plain_post(server, **headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8080", "[::1]:8080", "mach.localhost", "10.0.0.1"])
def test_names_that_nobody_can_rebind_are_served(server, host: str) -> None:
    assert httpx.get(f"{server.url}/v1/models", headers={"host": host}).status_code == 200


def test_names_and_origins_can_be_allowed(allowing) -> None:
    assert plain_post(allowing, host="box.lan:80").status_code == 200
    for origin in (PAGE, "app://mach"):
        answer = plain_post(allowing, origin=origin)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert plain_post(allowing, origin="https://evil.example").status_code == 403


def test_a_browser_s_preflight_is_answered_for_allowed_pages_without_a_key(start_server) -> None:
    server = start_server(access=Access(cors_origins=(PAGE,), api_key="k"))
    asks = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    answer = httpx.options(f"{server.url}/v1/chat/completions", headers=asks)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()
    refused = httpx.options(
        f"{server.url}/v1/chat/completions", headers={**asks, "origin": "https://evil.example"}
    )
    assert refused.status_code == 403
    # Its script can read why the real request failed.
    unknown = plain_post(server, origin=PAGE)
    assert (unknown.status_code, unknown.headers["access-control-allow-origin"]) == (401, PAGE)


def test_a_star_allows_every_page(all_allowed) -> None:
    answer = plain_post(all_allowed, origin="https://any.example", host="any.name")
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")


@pytest.mark.parametrize(
    "text", ["", "example.org", "https://", "https://a/b", "https://a:port", "https://a b", "null"]
)
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no origin"):
        checked_origin(text)


def test_origins_and_hosts_are_lower_case() -> None:
    assert checked_origin("HTTPS://Chat.Example.org:8443") == "https://chat.example.org:8443"
    assert checked_origin("http://[::1]:3000") == "http://[::1]:3000"
    assert checked_host("Box.LAN") == "box.lan"
    for text in ("", "a:80", "http://a", "a/b"):
        with pytest.raises(ValueError, match="no host name"):
            checked_host(text)


NAMES = st.sampled_from(["localhost", "127.0.0.1", "[::1]", "evil.example", "a.localhost", "localhost.evil"])
PORTS = st.sampled_from(["", ":80", ":8080", ":x", "#"])
HOSTS = st.builds(lambda name, port: f"{name}{port}".encode(), NAMES, PORTS)


@given(
    HOSTS | st.binary(max_size=40),
    st.none() | HOSTS | st.binary(max_size=40),
    st.sampled_from([b"", b"http://"]),
)
def test_no_header_breaks_the_guard_or_gets_a_foreign_name_past_it(host, origin, scheme) -> None:
    """Whoever is let through named this machine, and came from no page or from one of that very name."""
    passed: list[bool] = []
    statuses: list[int] = []

    async def app(scope, receive, send) -> None:
        passed.append(True)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message) -> None:
        statuses.append(message.get("status", 0))

    headers = [(b"host", host)]
    if origin is not None:
        headers.append((b"origin", scheme + origin))
    scope = {"type": "http", "method": "POST", "path": "/v1/stats", "headers": headers, "query_string": b""}
    attach(RequestRecord(id="a", method="POST", endpoint="/v1/stats"), scope)
    asyncio.run(OriginGuard((), (), Limits()).around(app)(scope, receive, send))
    assert passed or statuses[0] == 403
    if passed and host:
        assert b"evil" not in host
        said = scheme + origin if origin is not None else b""
        same = (b"http://" + host, b"http://" + host.removesuffix(b":80"), b"http://" + host + b":80")
        assert not said or said.lower() in [place.lower() for place in same]


@given(st.text(max_size=30))
def test_no_text_breaks_the_checks(text: str) -> None:
    for check in (checked_origin, checked_host):
        try:
            assert check(text) == text.lower()
        except ValueError:
            pass
