from importlib.util import find_spec
from pathlib import Path

import pytest

from mach.io.arch_registry import REGISTRY, arch_summary
from mach_server.startup_lines import startup_lines


@pytest.fixture(scope="module", params=["streaming", "stacked"])
def either(request: pytest.FixtureRequest, start_server, stacked: Path):
    return start_server() if request.param == "streaming" else start_server(str(stacked), residency="stacked")


def test_models_lists_the_one_model(either) -> None:
    listing = either.client.get("/models").json()
    assert listing["object"] == "list"
    (model,) = listing["data"]
    assert model["id"] == either.service.facts.model
    assert model["object"] == "model"
    assert model["max_model_len"] == 2048 or model["max_model_len"] > 0


def test_the_model_can_be_retrieved_by_each_of_its_names(either) -> None:
    (listed,) = either.client.get("/models").json()["data"]
    assert either.service.facts.names
    for name in either.service.facts.names:
        answer = either.client.get(f"/models/{name}")
        assert (answer.status_code, answer.json()) == (200, listed)


@pytest.mark.parametrize(
    "name", ["gpt-4", "org/mach-pico", "mach-pico/", "a/b/c", "%2Fmach-pico", "x" * 5000]
)
def test_another_model_is_404(server, name: str) -> None:
    answer = server.client.get(f"/models/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert len(answer.text) < 1000


def test_stats_count_what_was_answered(either) -> None:
    before = either.stats()
    usage = either.chat(max_tokens=4, temperature=0).json()["usage"]
    assert either.chat(n=2).status_code == 400
    after = either.stats()
    assert after["requests"]["completed"] == before["requests"]["completed"] + 1
    assert after["requests"]["rejected"] == before["requests"]["rejected"] + 1
    assert after["requests"]["open"] == 0
    assert after["prompt_tokens"] == before["prompt_tokens"] + usage["prompt_tokens"]
    assert after["completion_tokens"] == before["completion_tokens"] + usage["completion_tokens"]
    assert after["last_request"]["completion_tokens"] == usage["completion_tokens"]
    assert after["last_request"]["time_to_first_token_seconds"] > 0
    assert after["decode_tokens_per_second"] > 0
    assert after["running"] is None and after["queue_depth"] == 0
    assert after["decode_path"] == "target-only"
    policy = after["adaptive_block_policy"]
    assert policy.pop("name") == "none"
    assert policy == dict.fromkeys(("alpha_window", "alpha_threshold", "low_block", "default_block"))
    assert (after["specdec_drafted"], after["specdec_accepted"], after["recent_alpha"]) == (0, 0, None)
    assert (after["observed_cycles"], after["low_cycles"]) == (0, 0)
    assert after["memory"]["peak_rss_bytes"] > after["memory"]["mlx_active_bytes"] > 0


def test_cache_stats_hold_the_store_s_own_summary(either) -> None:
    either.chat(max_tokens=2)
    report = either.client.get("/cache/stats").json()
    facts = either.service.facts
    assert report["streaming_summary"]["residency"] == facts.residency
    assert report["streaming_summary"]["bank_bytes"] == facts.bank_bytes
    assert report["streaming_summary"]["hits"] > 0
    assert report["stale_generation_in_flight"] is False
    pread = report["direct_pread"]
    assert (pread["active"], pread["mode"]) == (facts.reader == "native", facts.reader)
    assert (pread["direct_io"], pread["asked"]) == (False, "auto")
    assert pread["reason"]
    kernels = report["cpu_kernels"]
    assert kernels["stock"] == {}
    assert (kernels["name"] == "mlx") == ("reason" in kernels) == (facts.residency == "unswapped")


def test_cache_stats_answer_while_a_generation_runs(start_server, endless_engine, eventually) -> None:
    server = start_server(engine=endless_engine)
    with server.stream():
        assert server.client.get("/cache/stats").json()["stale_generation_in_flight"] is True
        eventually(lambda: server.client.get("/cache/stats").json()["age_seconds"] < 0.5)
        assert server.stats()["running"]["phase"] == "decode"


@pytest.mark.parametrize(
    ("switches", "gb", "dispatch", "prefetch"),
    [
        ({"LME_ASYNC_PREFETCH": "1"}, 0.006, ("in-graph", None), None),
        ({"LME_ASYNC_PREFETCH": "1"}, None, ("in-graph", None), "every expert has a slot"),
        ({"LME_DIRECT_IO": "1"}, 0.006, ("in-graph", None), None),
        (
            {"LME_DIRECT_IO": "0"},
            0.006,
            ("in-graph", None),
            "experts are read through the page cache, which keeps processors busy that could compute "
            "(LME_ASYNC_PREFETCH=1 reads ahead all the same)",
        ),
        ({"LME_ASYNC_PREFETCH": "0"}, 0.006, ("in-graph", None), "switched off by LME_ASYNC_PREFETCH=0"),
        (
            {"LME_IN_GRAPH_DISPATCH": "0"},
            0.006,
            ("gather", "switched off by LME_IN_GRAPH_DISPATCH=0"),
            "no pass finds its experts by itself: see the layers' dispatch",
        ),
        (
            {"LME_USE_GATHER_DISPATCH": "0"},
            0.006,
            ("disk", "the reference dispatch asks the host"),
            "no pass finds its experts by itself: see the layers' dispatch",
        ),
    ],
)
def test_fast_paths_that_are_off_say_why(start_server, monkeypatch, switches, gb, dispatch, prefetch) -> None:
    for name, value in switches.items():
        monkeypatch.setenv(name, value)
    server = start_server(gb=gb)
    reports = server.stats(), server.client.get("/capabilities").json()["serving"]
    for report in reports:
        assert report["expert_dispatch"] == dict(zip(("name", "reason"), dispatch, strict=True))
        assert report["async_prefetch"] == {"active": prefetch is None, "reason": prefetch}
    (line,) = [line for line in startup_lines(server.service.facts) if "async_prefetch" in line]
    assert f" async_prefetch={int(prefetch is None)} " in line


def test_capabilities_are_those_of_this_version(either) -> None:
    report = either.client.get("/capabilities").json()
    assert report["arch"] == arch_summary(REGISTRY["qwen3_moe"])
    assert (report["backend"], report["supported"]) == ("production", True)
    serving = report["serving"]
    assert serving["expert_residency"] == either.service.facts.residency
    assert serving["decode_path"] == "target-only"
    assert serving["effective_decode_path"] == "target_only"
    assert serving["speculation"]["supported_presets"] == ["none"]
    assert serving["continuous_batching"] is False and serving["turboquant_kv"] is False
    available = {"xgrammar": find_spec("xgrammar") is not None, "llguidance": True}
    assert report["grammar"] == {**available, "lm_format_enforcer": False}


def test_both_residencies_give_the_same_text_and_differ_in_fingerprint(
    start_server, stacked: Path, server
) -> None:
    resident = start_server(str(stacked), residency="stacked")
    fields = {"temperature": 0, "max_tokens": 16}
    assert resident.text(**fields) == server.text(**fields)
    assert resident.service.facts.fingerprint != server.service.facts.fingerprint


def test_the_checkpoint_s_path_is_a_name_of_the_model_too(start_server, stacked: Path) -> None:
    resident = start_server(str(stacked), residency="stacked")
    body = {**resident.body(max_tokens=1), "model": str(stacked)}
    answer = resident.client.post("/chat/completions", json=body)
    assert (answer.status_code, answer.json()["model"]) == (200, "pico-stacked")
