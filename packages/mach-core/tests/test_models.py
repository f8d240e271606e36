import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mach.commands.models import HINT, main
from mach.discovery.remote_catalog import CATALOG_PATH


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LME_CATALOG_URL", "LME_CATALOG_TOKEN", "LME_MODELS_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def models(tmp_path: Path, make_checkpoint: Callable[..., Path], families: dict[str, dict]) -> Path:
    make_checkpoint(families["qwen3_moe"], {"x": ("BF16", (4,))}, name="models/here")
    make_checkpoint({"model_type": "llama\x1b[2J"}, {}, name="models/other")
    return tmp_path / "models"


def listed(output: str) -> dict[str, list[str]]:
    rows = output.partition("\n\n")[0].splitlines()[2:]
    return {row.split()[0]: row.split()[1:] for row in rows}


def test_the_table_has_the_documented_columns_and_the_hint(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--dir", str(models)]) == 0
    output = capsys.readouterr().out
    assert output.splitlines()[0].split() == [
        "name",
        "source",
        "model_type",
        "supported",
        "installed",
        "size",
    ]
    assert listed(output)["here"][:4] == ["local", "qwen3_moe", "yes", "yes"]
    assert listed(output)["other"][1:3] == ["llama\\x1b[2J", "no"]
    assert HINT in output


def test_directories_come_from_flags_environment_and_cache_root(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LME_MODELS_DIR", f"/nowhere:{models}")
    assert main(["--json", "--local-only"]) == 0
    from_environment = json.loads(capsys.readouterr().out)["models"]
    monkeypatch.delenv("LME_MODELS_DIR")
    assert main(["--json", "--local-only", "--cache-dir", str(models)]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == from_environment
    assert {row["name"] for row in from_environment} >= {"here", "other"}


def test_the_catalogue_is_merged_in(
    models: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {
        "models": [{"name": "org/here"}, {"name": "org/far", "model_type": "gpt_oss", "size_bytes": 10**10}]
    }
    stand_in.add(CATALOG_PATH, json.dumps(body).encode())
    monkeypatch.setenv("LME_CATALOG_URL", stand_in.url)
    monkeypatch.setenv("LME_CATALOG_TOKEN", "secret")
    assert main(["--dir", str(models)]) == 0
    output = capsys.readouterr().out
    assert listed(output)["here"][0] == "local+remote"
    assert listed(output)["org/far"] == ["remote", "gpt_oss", "yes", "no", "10.0GB"]
    assert HINT not in output
    stand_in.requests.clear()
    assert main(["--local-only", "--dir", str(models)]) == 0
    assert not stand_in.requests


def test_a_failing_catalogue_is_a_warning_and_the_local_list(
    models: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.add(CATALOG_PATH, b"", 401)
    monkeypatch.setenv("LME_CATALOG_TOKEN", "secret-token")
    for url in (stand_in.url, "http://127.0.0.1:9", "nonsense", "http://user:secret-token@127.0.0.1:9/"):
        monkeypatch.setenv("LME_CATALOG_URL", url)
        assert main(["--dir", str(models)]) == 0
        captured = capsys.readouterr()
        assert "here" in listed(captured.out)
        assert "the catalogue is left out" in captured.err
        assert "secret-token" not in captured.out + captured.err


def test_nothing_found_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("mach.commands.models.local_models", lambda directories: ([], []))
    assert main(["--cache-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("no models found")
