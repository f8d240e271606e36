"""The examples, run as examples/README.md says, against `mach-serve mach-pico --streaming`."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
OPENCODE = ROOT / ".opencode-config" / "opencode" / "opencode.json"
SECONDS = 240


def run(
    *command: str | Path, cwd: Path = ROOT, **environment: str | None
) -> subprocess.CompletedProcess[str]:
    changed = {name: value for name, value in environment.items() if value is not None}
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL,
        env={**os.environ, **changed},
    )  # fmt: skip


def test_the_smoke_script_finds_everything_in_order(served_pico: str) -> None:
    result = run(EXAMPLES / "curl_smoke.sh", served_pico)
    assert (result.returncode, result.stderr) == (0, "")
    assert "model: mach-pico" in result.stdout
    assert result.stdout.count("ok: ") == 9


def test_the_smoke_script_fails_where_nothing_answers() -> None:
    result = run(EXAMPLES / "curl_smoke.sh", "http://127.0.0.1:9")
    assert result.returncode == 1
    assert "FAILED: models: http://127.0.0.1:9 does not answer" in result.stderr


def test_the_smoke_script_says_what_is_wrong(served_pico: str) -> None:
    result = run(EXAMPLES / "curl_smoke.sh", f"{served_pico}/elsewhere")
    assert result.returncode == 1
    assert "FAILED: models: status 404 instead of 200" in result.stderr


def told(stdout: str) -> dict[str, str]:
    return dict(re.findall(r"^(model|chat|tool): (.*)$", stdout, re.MULTILINE))


def test_the_python_client_chats_streams_and_calls(served_pico: str) -> None:
    result = run(sys.executable, EXAMPLES / "openai_python.py", served_pico)
    assert result.returncode == 0, result.stderr
    lines = told(result.stdout)
    assert lines["model"] == "mach-pico" and len(lines["chat"]) > 10
    assert lines["tool"] == "get_weather {'city': 'Paris'}"


def test_the_javascript_client_chats_streams_and_calls(served_pico: str, node_clients: Path) -> None:
    shutil.copy(EXAMPLES / "openai_node.mjs", node_clients)
    result = run("node", "openai_node.mjs", served_pico, cwd=node_clients)
    assert result.returncode == 0, result.stderr
    lines = told(result.stdout)
    assert lines["model"] == "mach-pico" and len(lines["chat"]) > 10
    assert lines["tool"] == 'get_weather {"city":"Paris"}'


def test_opencode_s_configuration_is_about_the_model_that_is_served(served_pico: str) -> None:
    config = json.loads(OPENCODE.read_text())
    (model,) = httpx.get(f"{served_pico}/v1/models").json()["data"]
    provider, name = config["model"].split("/")
    assert config["model"] == config["small_model"] and name == model["id"]
    assert config["enabled_providers"] == [provider] == list(config["provider"])
    offered = config["provider"][provider]
    assert offered["models"][name]["limit"]["context"] == model["max_model_len"]
    assert offered["options"]["baseURL"] == "http://127.0.0.1:8080/v1"
    assert config["default_agent"] in config["agent"]


@pytest.mark.skipif(
    shutil.which("opencode") is None, reason="opencode is not installed (npm install -g opencode-ai)"
)
def test_opencode_answers_with_this_configuration(served_pico: str, tmp_path: Path) -> None:
    config = tmp_path / "config" / "opencode" / "opencode.json"
    config.parent.mkdir(parents=True)
    config.write_text(OPENCODE.read_text().replace("http://127.0.0.1:8080", served_pico))
    work = tmp_path / "work"
    work.mkdir()
    before = httpx.get(f"{served_pico}/v1/stats").json()["requests"]
    result = run(
        "opencode", "run", "Write a binary search in Python", cwd=work,
        HOME=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path / "config"), XDG_DATA_HOME=None, XDG_CACHE_HOME=None,
        OPENCODE_DISABLE_MODELS_FETCH="1", OPENCODE_DISABLE_AUTOUPDATE="1",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip(), result.stderr
    after = httpx.get(f"{served_pico}/v1/stats").json()["requests"]
    assert after["completed"] > before["completed"] and after["rejected"] == before["rejected"]
