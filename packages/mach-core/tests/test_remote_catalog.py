import json
from typing import Any

import pytest

from mach.discovery.remote_catalog import CATALOG_PATH, catalog_url, remote_models
from mach.io.http_get import FetchError


def test_the_url_may_be_a_base_or_whole() -> None:
    for configured in ("https://host", "https://host/", "https://host" + CATALOG_PATH):
        assert catalog_url(configured) == "https://host" + CATALOG_PATH
    assert catalog_url("https://host/api") == "https://host/api" + CATALOG_PATH


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"models": m}, lambda m: {"data": m, "next": None}])
def test_lists_are_found_wherever_they_lie(stand_in: Any, wrap: Any) -> None:
    models = [
        {"name": "a", "model_type": "qwen3_moe", "size_bytes": 5},
        {"id": "b"},
        {"x": 1},
        "c",
        {"name": ""},
    ]
    stand_in.add(CATALOG_PATH, json.dumps(wrap(models)).encode())
    rows, warnings = remote_models(stand_in.url, "secret")
    assert [(row.name, row.model_type, row.size, row.supported) for row in rows] == [
        ("a", "qwen3_moe", 5, True),
        ("b", None, None, False),
    ]
    assert "3 entries were not understood" in warnings[0]
    assert stand_in.requests[0][1]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("status", "body", "problem"),
    [
        (401, b"", "HTTP 401.*LME_CATALOG_TOKEN"),
        (500, b"", "HTTP 500"),
        (200, b"<html>", "not JSON"),
        (200, b"[" * 100_000, "not JSON"),
        (200, b'{"models": 5}', "no list of models"),
        (200, b"5", "no list of models"),
    ],
)
def test_failures_are_clear_and_keep_the_token(stand_in: Any, status: int, body: bytes, problem: str) -> None:
    stand_in.add(CATALOG_PATH, body, status)
    with pytest.raises(FetchError, match=problem) as caught:
        remote_models(stand_in.url, "secret")
    assert "secret" not in str(caught.value)
