import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mach_server.access import Access
from mach_server.api_key import checked_key, key_from_environment
from mach_server.errors import SettingError

KEY = "sk-mach-1:!~"
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages/count_tokens")


@pytest.fixture(scope="module")
def locked(start_server):
    return start_server(access=Access(api_key=KEY))


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY}"},
        {"x-api-key": KEY},
        {"x-api-key": KEY, "authorization": "Bearer other"},
    ],
)
def test_the_key_opens_in_either_header(locked, headers: dict[str, str]) -> None:
    assert httpx.get(f"{locked.url}/v1/models", headers=headers).status_code == 200
    body = locked.body(max_tokens=1)
    assert httpx.post(f"{locked.url}/v1/chat/completions", json=body, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"x-api-key": ""},
        {"x-api-key": KEY.upper()},
        {"api-key": KEY},
    ],
)
def test_anything_else_is_401_in_openai_s_form(locked, headers: dict[str, str]) -> None:
    for path in ("/v1/models", "/v1/stats", "/metrics", "/v1/models/mach-pico", "/nowhere"):
        answer = httpx.get(f"{locked.url}{path}", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert KEY not in answer.text


def test_bytes_that_no_key_has_are_401(locked) -> None:
    assert httpx.get(f"{locked.url}/v1/models", headers=[(b"x-api-key", b"\xff\xfe")]).status_code == 401


def test_anthropic_s_endpoints_refuse_in_anthropic_s_form(locked) -> None:
    answer = httpx.post(f"{locked.url}/v1/messages", json={})
    assert (answer.status_code, answer.json()["type"]) == (401, "error")
    assert answer.json()["error"]["type"] == "authentication_error"


def test_a_refused_body_is_not_read_into_the_engine(locked) -> None:
    before = locked.service.thread.counts.completed
    for path in ENDPOINTS:
        answer = httpx.post(f"{locked.url}{path}", content=b"x" * 1_000_000)
        assert answer.status_code == 401
    assert locked.service.thread.counts.completed == before


def test_health_is_open(locked) -> None:
    assert httpx.get(f"{locked.url}/health").json() == {"status": "ok"}


def test_without_a_key_any_is_accepted(server) -> None:
    assert server.client.get("/models", headers={"authorization": "Bearer whatever"}).status_code == 200


@given(st.text(max_size=20))
def test_a_key_is_visible_ascii_or_refused(text: str) -> None:
    if text and all("!" <= letter <= "~" for letter in text):
        assert checked_key(text) == text
    else:
        with pytest.raises(ValueError, match="visible ASCII"):
            checked_key(text)


def test_the_environment_s_key_is_checked_and_its_value_never_told() -> None:
    assert key_from_environment({}) is None
    assert key_from_environment({"MACH_API_KEY": "k"}) == "k"
    for value in ("", "two words", "schlüssel"):
        with pytest.raises(SettingError, match="MACH_API_KEY") as refusal:
            key_from_environment({"MACH_API_KEY": value})
        assert not value or value not in str(refusal.value)
