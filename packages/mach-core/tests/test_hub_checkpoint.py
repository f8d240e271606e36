import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mach.errors import ConfigError, HeaderError, UnknownArchitectureError
from mach.io.http_get import FetchError
from mach.preflight.hub_checkpoint import HubCheckpoint, fetch_hub_checkpoint, is_repo_id
from mach.settings import CoreSettings

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PREFIX = "/org/model/resolve/main"


@pytest.fixture
def publish(
    stand_in: Any,
    tmp_path: Path,
    families: dict[str, dict],
    stacked: Callable[..., dict],
    make_checkpoint: Callable[..., Path],
    write_tensors: Callable[..., None],
) -> Callable[..., None]:
    """Puts a stacked qwen3_moe checkpoint on the stand-in hub, in one file or in shards with an index."""

    def put(shards: int = 1) -> None:
        directory = make_checkpoint(families["qwen3_moe"], name=f"published-{shards}")
        tensors = list(stacked(families["qwen3_moe"]).items())
        weight_map = {}
        for index in range(shards):
            name = "model.safetensors" if shards == 1 else f"model-{index}.safetensors"
            part = dict(tensors[index::shards])
            write_tensors(directory / name, part)
            weight_map |= dict.fromkeys(part, name)
        if shards > 1:
            (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        for path in directory.iterdir():
            stand_in.add(f"{PREFIX}/{path.name}", path.read_bytes(), X_Repo_Commit=COMMIT)

    return put


@pytest.fixture
def fetch(stand_in: Any, tmp_path: Path) -> Callable[[], HubCheckpoint]:
    settings = CoreSettings(
        hub_endpoint=stand_in.url, hub_token="hf-secret", cache_root=str(tmp_path / "cache")
    )
    return lambda: fetch_hub_checkpoint("org/model", "main", settings)


def asked(stand_in: Any) -> list[str]:
    return [path.removeprefix(PREFIX + "/") for path, _ in stand_in.requests]


@pytest.mark.parametrize("shards", [1, 3])
def test_headers_alone_are_fetched_and_kept_by_commit(
    stand_in: Any, publish: Callable[..., None], fetch: Callable[[], HubCheckpoint], shards: int
) -> None:
    publish(shards)
    hub = fetch()
    found = hub.inspection()
    assert (found.layout, found.quantization.label, hub.commit) == ("stacked", "bf16", COMMIT)
    assert found.expert_bytes == 2 * 8 * 3 * 128 * 64 * 2
    assert not hub.notes
    for path, headers in stand_in.requests:
        assert ("Range" in headers) == path.endswith((".safetensors", "tokenizer.json"))
        assert headers["Authorization"] == "Bearer hf-secret"
    stand_in.requests.clear()
    assert fetch().inspection().expert_bytes == found.expert_bytes
    assert asked(stand_in) == ["config.json"]


def test_a_repository_without_a_tokenizer_is_seen(
    stand_in: Any, publish: Callable[..., None], fetch: Callable[[], HubCheckpoint]
) -> None:
    publish()
    del stand_in.pages[f"{PREFIX}/tokenizer.json"]
    assert fetch().has_tokenizer is False
    assert asked(stand_in).count("tokenizer.model") == 1
    stand_in.requests.clear()
    assert fetch().has_tokenizer is False, "what is absent is kept too"
    assert asked(stand_in) == ["config.json"]


def test_without_network_the_last_copy_serves_with_a_note(
    stand_in: Any, publish: Callable[..., None], fetch: Callable[[], HubCheckpoint], tmp_path: Path
) -> None:
    publish()
    fetch()
    settings = CoreSettings(hub_endpoint="http://127.0.0.1:9", cache_root=str(tmp_path / "cache"))
    hub = fetch_hub_checkpoint("org/model", "main", settings)
    assert hub.inspection().layout == "stacked"
    assert "offline" in hub.notes[0]
    with pytest.raises(FetchError, match="not reachable"):
        fetch_hub_checkpoint("org/other", "main", settings)


def test_a_hub_without_ranges_gives_a_layout_but_no_sizes(
    stand_in: Any, publish: Callable[..., None], fetch: Callable[[], HubCheckpoint], monkeypatch: Any
) -> None:
    monkeypatch.setattr("mach.preflight.hub_checkpoint.FIRST_BYTES", 64)
    publish(2)
    stand_in.ranges = False
    hub = fetch()
    found = hub.inspection()
    assert (found.layout, found.headers_read) == ("stacked", False)
    assert "headers were not given" in hub.notes[0]


def test_an_absent_repository_is_told_from_a_private_one(
    stand_in: Any, fetch: Callable[[], HubCheckpoint]
) -> None:
    with pytest.raises(FetchError, match="no such repository"):
        fetch()
    stand_in.add(f"{PREFIX}/config.json", b"", 401)
    with pytest.raises(FetchError, match="set HF_TOKEN"):
        fetch()


def test_a_proxys_login_page_is_no_config(stand_in: Any, fetch: Callable[[], HubCheckpoint]) -> None:
    stand_in.add(f"{PREFIX}/config.json", b"<html>please log in</html>")
    with pytest.raises(ConfigError, match=r"config\.json: not valid JSON"):
        fetch()


def test_an_unknown_architecture_stops_after_one_request(
    stand_in: Any, fetch: Callable[[], HubCheckpoint]
) -> None:
    stand_in.add(f"{PREFIX}/config.json", b'{"model_type": "llama"}')
    with pytest.raises(UnknownArchitectureError):
        fetch()
    assert asked(stand_in) == ["config.json"]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ((1 << 50).to_bytes(8, "little") + b"{}", "header length"),
        ((2).to_bytes(8, "little") + b"[]", "not a JSON object"),
        (b"<html>", "too few"),
    ],
)
def test_a_header_that_lies_is_refused(
    stand_in: Any, publish: Callable[..., None], fetch: Callable[[], HubCheckpoint], body: bytes, problem: str
) -> None:
    publish()
    stand_in.add(f"{PREFIX}/model.safetensors", body)
    with pytest.raises(HeaderError, match=problem):
        fetch()


def test_a_remote_sidecar_is_judged_by_its_layout(
    stand_in: Any, publish: Callable[..., None], fetch: Callable[[], HubCheckpoint]
) -> None:
    publish()
    stand_in.add(f"{PREFIX}/expert_sidecar/layout.json", b'{"magic": 5}')
    hub = fetch()
    found = hub.sidecar(hub.inspection())
    assert (found.present, found.valid) == (True, False)
    assert "magic" in found.reason


def test_repo_ids_have_their_form() -> None:
    assert is_repo_id("mlx-community/Qwen3-Coder-30B-A3B-MLX-4bit")
    assert not any(map(is_repo_id, ["name", "a/b/c", "../x", "/abs", "a/..", "a b/c", "", "https://x/y"]))
