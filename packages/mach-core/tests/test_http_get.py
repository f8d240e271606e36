import socket
import threading
import time
from typing import Any

import pytest

from mach.io.http_get import FetchError, http_get, shown_url

SECRET = "token-that-must-not-appear"


def test_a_page_comes_with_status_and_headers(stand_in: Any) -> None:
    stand_in.add("/page", b"hello", X_Repo_Commit="abc")
    found = http_get(stand_in.url + "/page", max_bytes=5)
    assert (found.status, found.body, found.headers["x-repo-commit"]) == (200, b"hello", "abc")


def test_ranges_are_asked_for_and_may_be_ignored(stand_in: Any) -> None:
    stand_in.add("/page", b"0123456789")
    assert http_get(stand_in.url + "/page", max_bytes=4, byte_range=(2, 5)).body == b"2345"
    stand_in.ranges = False
    ignored = http_get(stand_in.url + "/page", max_bytes=4, byte_range=(0, 3))
    assert (ignored.status, ignored.body) == (200, b"0123")


def test_too_much_and_too_slow_are_refused(stand_in: Any) -> None:
    stand_in.add("/big", bytes(1000))
    with pytest.raises(FetchError, match="larger than 999 bytes"):
        http_get(stand_in.url + "/big", max_bytes=999)
    stand_in.before_body = lambda: time.sleep(0.5)
    begin = time.monotonic()
    with pytest.raises(FetchError, match="timed out"):
        http_get(stand_in.url + "/big", max_bytes=1000, timeout=0.1)
    assert time.monotonic() - begin < 0.4


def test_a_token_goes_to_its_host_and_not_to_where_that_redirects(stand_in: Any) -> None:
    stand_in.add("/from", b"", 302, Location=stand_in.url + "/to")
    stand_in.add("/to", b"ok")
    http_get(stand_in.url + "/from", token=SECRET, max_bytes=10)
    (_, first), (_, second) = stand_in.requests
    assert first["Authorization"] == f"Bearer {SECRET}"
    assert "Authorization" not in second


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_statuses_are_errors_that_carry_them(stand_in: Any, status: int) -> None:
    stand_in.add("/page", b"", status)
    with pytest.raises(FetchError, match=f"HTTP {status}") as caught:
        http_get(stand_in.url + "/page", token=SECRET, max_bytes=10)
    assert caught.value.status == status
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "token"),
    [
        ("file:///etc/passwd", None),
        ("ftp://127.0.0.1/x", None),
        ("http://127.0.0.1:9/closed", None),
        ("http://127.0.0.1:port/", None),
        ("http://127.0.0.1:9/a b", None),
        ("http://[", None),
        ("http://127.0.0.1:9/", SECRET + "\nX: y"),
        ("http://127.0.0.1:9/", SECRET + "\u20ac"),
    ],
)
def test_urls_and_tokens_that_cannot_be_used_are_clear_errors(url: str, token: str | None) -> None:
    with pytest.raises(FetchError) as caught:
        http_get(url, token=token, max_bytes=10, timeout=1)
    assert SECRET not in str(caught.value)


def test_a_shown_url_has_no_secrets() -> None:
    assert shown_url(f"https://user:{SECRET}@host:8080/a/b?key={SECRET}#x") == "https://host:8080/a/b"


def test_headers_that_drip_in_are_given_up_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                while not stop.wait(0.05):
                    connection.sendall(b"H")

        thread = threading.Thread(target=drip)
        thread.start()
        begin = time.monotonic()
        with pytest.raises(FetchError, match="too slow"):
            http_get(f"http://127.0.0.1:{server.getsockname()[1]}/", max_bytes=10, deadline=0.2)
        assert time.monotonic() - begin < 5
        stop.set()
        thread.join()
