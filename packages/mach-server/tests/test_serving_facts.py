"""What the server says of residency and backend, where it is not streaming or stacked."""

from pathlib import Path

import pytest

from mach.io.arch_registry import REGISTRY, arch_summary
from mach_decode.engine import UNSWAPPED
from mach_server.startup_lines import startup_lines
from mach_store.synthetic_dense import dense_config, write_dense_checkpoint


@pytest.fixture(scope="module")
def dense(pico: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dense") / "tiny-dense"
    write_dense_checkpoint(directory, dense_config(), tokenizer_from=pico)
    return directory


@pytest.fixture(scope="module")
def narrow(start_server, stacked: Path):
    """bf16_streaming of a stacked checkpoint."""
    return start_server(str(stacked), residency="bf16_streaming", gb=0.02)


@pytest.fixture(scope="module")
def generic(start_server, dense: Path):
    """`--backend openai` on a model that is not registered."""
    return start_server(str(dense), residency=UNSWAPPED)


def fields(server) -> dict[str, str]:
    words = " ".join(startup_lines(server.service.facts)).split(" ")
    return dict(word.split("=", 1) for word in words if "=" in word)


def test_bf16_streaming_is_called_by_its_name(narrow, server) -> None:
    assert narrow.chat(temperature=0, max_tokens=8).json()["usage"]["completion_tokens"] == 8
    serving = narrow.client.get("/capabilities").json()["serving"]
    assert (serving["expert_residency"], serving["serving_mode"]) == ("bf16_streaming", "streaming")
    said = fields(narrow)
    assert (said["expert_residency"], said["production_streaming_mode"]) == ("bf16_streaming", "streaming")
    assert (said["verify_reads"], said["transient_prefill"], said["expected"]) == ("0", "1", "1")
    assert 0 < int(said["expert_bank_bytes"]) <= 20_000_000
    report = narrow.client.get("/cache/stats").json()
    summary = report["streaming_summary"]
    assert summary["residency"] == "bf16_streaming"
    assert summary["bank_bytes"] == int(said["expert_bank_bytes"])
    assert summary["misses"] > 0
    assert summary["scratch_bytes"] <= int(said["scratch_bytes"])
    assert report["direct_pread"]["active"] is (said["direct_pread"] == "1")


def test_the_openai_backend_answers_and_says_what_it_is(generic) -> None:
    answer = generic.chat(max_tokens=4, temperature=0)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] <= 4
    report = generic.client.get("/capabilities").json()
    assert (report["backend"], report["supported"], report["arch"]) == ("openai", False, None)
    assert report["model"] == "tiny-dense"
    serving = report["serving"]
    assert serving["serving_mode"] == "openai-mlx-stream-generate"
    assert (serving["decode_path"], serving["disk_kv"]) == ("target-only", False)
    assert serving["expert_residency"] == "unswapped"
    assert "expert_reader" not in serving and "decode_policy" not in serving
    (model,) = generic.client.get("/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == ("tiny-dense", 512)


def test_the_openai_backend_has_no_expert_store_and_says_so(generic) -> None:
    generic.chat(max_tokens=2)
    report = generic.client.get("/cache/stats").json()
    assert report["streaming_summary"]["residency"] == "unswapped"
    assert (report["streaming_summary"]["hits"], report["streaming_summary"]["bank_bytes"]) == (0, 0)
    pread = report["direct_pread"]
    assert (pread["active"], pread["mode"], pread["direct_io"]) == (False, "none", False)
    stats = generic.stats()
    assert stats["expert_reader"] == {"name": "none", "reason": None}
    assert stats["last_request"]["expert_bytes_read"] == 0
    assert stats["memory"]["mlx_active_bytes"] > 0


def test_the_openai_backends_lines_hold_nothing_of_a_store(generic) -> None:
    said, lines = fields(generic), startup_lines(generic.service.facts)
    assert lines[0] == (
        "startup mode profile=openai serving_mode=openai-mlx-stream-generate expert_residency=unswapped "
        "dispatch=mlx-lm arch=none"
    )
    assert said["decode_path"] == "target-only"
    assert said["expert_bank_bytes"] == said["scratch_bytes"] == "0"
    assert said["total_bytes"] == said["other_weight_bytes"] != "0"
    assert not any("direct" in line for line in lines)


def test_the_openai_backend_names_a_registered_architecture(start_server, stacked: Path) -> None:
    server = start_server(str(stacked), residency=UNSWAPPED)
    report = server.client.get("/capabilities").json()
    assert (report["backend"], report["supported"]) == ("openai", True)
    assert report["arch"] == arch_summary(REGISTRY["qwen3_moe"])
    assert server.chat(temperature=0, max_tokens=4).json()["usage"]["completion_tokens"] == 4
