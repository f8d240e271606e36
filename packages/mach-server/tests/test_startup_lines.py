from pathlib import Path

from mach_server.startup_lines import startup_lines

DOCUMENTED = {
    "startup mode": {
        "profile",
        "production_streaming_mode",
        "transient_prefill",
        "expert_residency",
        "eviction_policy",
    },
    "production optimizations": {"direct_pread", "native_prefill_fused", "async_prefetch", "resident_metal"},
    "startup direct-pread": {
        "expected",
        "sidecar_present",
        "sidecar_valid",
        "native_extension",
        "fallback_policy",
    },
    "startup": {"decode_path", "adaptive_block_policy"},
    "startup memory": {
        "expert_bank_bytes",
        "scratch_bytes",
        "other_weight_bytes",
        "total_bytes",
        "kv_budget_bytes",
        "kv_tokens",
        "reserve_bytes",
        "planned_bytes",
        "limit_bytes",
        "limit_source",
        "wired_bytes",
    },
}


def parsed(server) -> dict[str, dict[str, str]]:
    lines: dict[str, dict[str, str]] = {}
    for line in startup_lines(server.service.facts):
        words = line.split(" ")
        pairs = dict(word.split("=", 1) for word in words if "=" in word)
        lines[" ".join(word for word in words if "=" not in word)] = pairs
    return lines


def test_every_documented_key_stands_in_its_line(server) -> None:
    lines = parsed(server)
    assert set(lines) == set(DOCUMENTED)
    for head, keys in DOCUMENTED.items():
        assert keys <= set(lines[head])


def test_streaming_lines_say_what_is_so(server) -> None:
    lines, loaded = parsed(server), server.service.facts
    assert lines["startup mode"]["production_streaming_mode"] == "streaming"
    assert lines["startup mode"]["expert_residency"] == "streaming"
    assert lines["startup mode"]["transient_prefill"] == "1"
    assert lines["startup mode"]["eviction_policy"] == "lookahead"
    native = loaded.reader == "native"
    assert lines["production optimizations"]["direct_pread"] == str(int(native))
    pread = lines["startup direct-pread"]
    assert (pread["expected"], pread["sidecar_present"], pread["sidecar_valid"]) == ("1", "1", "1")
    assert pread["native_extension"] == ("ready" if native else "missing")
    assert pread["fallback_policy"] == "fail-fast"
    assert lines["startup"] == {"decode_path": "target-only", "adaptive_block_policy": "none"}
    summary = server.client.get("/cache/stats").json()["streaming_summary"]
    memory = lines["startup memory"]
    assert int(memory["expert_bank_bytes"]) == summary["bank_bytes"]
    planned = ("total_bytes", "kv_budget_bytes", "reserve_bytes")
    assert (
        int(memory["planned_bytes"]) == sum(int(memory[key]) for key in planned) <= int(memory["limit_bytes"])
    )
    assert int(memory["kv_tokens"]) == loaded.context_length
    reads = lines["production optimizations"]
    assert (reads["direct_io"], reads["direct_io_asked"]) == ("0", "auto")
    assert reads["direct_io_reason"] in ("page-cache-holds-all", "whole-bank", "python-reader")


def test_stacked_lines_say_what_is_so(start_server, stacked: Path) -> None:
    lines = parsed(start_server(str(stacked), residency="stacked"))
    assert lines["startup mode"]["production_streaming_mode"] == "stacked"
    assert lines["startup mode"]["expert_residency"] == "stacked"
    assert lines["startup mode"]["transient_prefill"] == "0"
    assert lines["startup mode"]["eviction_policy"] == "none"
    assert lines["production optimizations"]["direct_pread"] == "0"
    pread = lines["startup direct-pread"]
    assert (pread["expected"], pread["sidecar_present"], pread["sidecar_valid"]) == ("0", "0", "0")
    assert pread["reader"] == "none"
    assert lines["startup memory"]["scratch_bytes"] == "0"


def test_streaming_a_stacked_checkpoint_reports_no_sidecar(start_server, stacked: Path) -> None:
    lines = parsed(start_server(str(stacked)))
    assert lines["startup mode"]["expert_residency"] == "streaming"
    assert lines["startup direct-pread"]["sidecar_present"] == "0"
