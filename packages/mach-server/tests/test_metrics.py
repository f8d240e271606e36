import math

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

HISTOGRAMS = ("mach_time_to_first_token_seconds", "mach_inter_token_latency_seconds")


def scrape(server) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = httpx.get(f"{server.url}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation and family.type != "unknown", family.name
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples, key
            samples[key] = sample.value
    return samples


@pytest.fixture(scope="module")
def narrow(start_server):
    """A bank that holds a part of the experts, so that some are read."""
    return start_server(gb=0.016)


def test_a_scrape_tells_what_the_other_reports_tell(narrow) -> None:
    before = scrape(narrow)
    usage = narrow.chat(max_tokens=6, temperature=0).json()["usage"]
    after = scrape(narrow)

    def grown(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after[key] - before.get(key, 0)

    assert grown("mach_completion_tokens_total") == usage["completion_tokens"] == 6
    assert grown("mach_prompt_tokens_total") == usage["prompt_tokens"]
    assert grown("mach_answers_total", outcome="completed") == 1
    assert grown("mach_http_requests_total", endpoint="/v1/chat/completions", status="200") == 1
    assert grown("mach_http_requests_total", endpoint="/metrics", status="200") == 1
    assert grown("mach_time_to_first_token_seconds_count") == 1
    assert grown("mach_inter_token_latency_seconds_count") == 5
    assert 0 < grown("mach_inter_token_latency_seconds_sum") < 60
    assert grown("mach_bank_misses_total") > 0 and grown("mach_bank_bytes_read_total") > 0
    assert grown("mach_bank_read_seconds_total") > 0
    summary = narrow.client.get("/cache/stats").json()["streaming_summary"]
    for name in ("hits", "misses", "evictions", "bytes_read", "read_seconds"):
        assert after[f"mach_bank_{name}_total", ()] == summary[name]
    assert after["mach_bank_slots", ()] == summary["bank_slots"]
    assert after["mach_bank_slots_used", ()] == summary["experts_resident"] > 0
    memory = narrow.stats()["memory"]
    assert after["mach_bank_declared_bytes", ()] == memory["bank_declared_bytes"] == summary["bank_bytes"]
    assert after["mach_kv_budget_bytes", ()] == memory["kv_budget_bytes"] > 0
    assert after["mach_memory_reserve_bytes", ()] == memory["pressure"]["reserve_bytes"]
    for direction in ("shrink", "grow"):
        assert after["mach_bank_resizes_total", (("direction", direction),)] == 0
    assert after["mach_queue_length", ()] == 0 and after["mach_requests_running", ()] == 0
    assert after["mach_queue_limit", ()] == narrow.service.limits.queue_length
    assert after["mach_peak_resident_memory_bytes", ()] > after["mach_mlx_active_bytes", ()] > 0


def test_buckets_are_cumulative_and_end_with_the_count(narrow) -> None:
    narrow.chat(max_tokens=3)
    samples = scrape(narrow)
    for name in HISTOGRAMS:
        buckets = [
            (float(dict(labels)["le"]), value)
            for (sample, labels), value in samples.items()
            if sample == f"{name}_bucket"
        ]
        buckets.sort()
        assert [value for _, value in buckets] == sorted(value for _, value in buckets)
        assert buckets[-1] == (math.inf, samples[f"{name}_count", ()])


def test_a_scrape_answers_while_tokens_are_made_and_counts_them_at_once(
    start_server, endless_engine, eventually
) -> None:
    server = start_server(engine=endless_engine)
    with server.stream():
        waiting = server.send_only(server.body())
        eventually(lambda: scrape(server)["mach_queue_length", ()] == 1)
        first = scrape(server)
        assert first["mach_requests_running", ()] == 1
        eventually(
            lambda: (
                scrape(server)["mach_completion_tokens_total", ()] > first["mach_completion_tokens_total", ()]
            )
        )
        assert first["mach_answers_total", (("outcome", "completed"),)] == 0
        waiting.close()
    eventually(lambda: scrape(server)["mach_answers_total", (("outcome", "withdrawn"),)] == 1)
    eventually(lambda: scrape(server)["mach_answers_total", (("outcome", "cancelled"),)] == 1)


def test_every_residency_can_be_scraped(start_server, stacked) -> None:
    samples = scrape(start_server(str(stacked), residency="stacked"))
    assert samples["mach_bank_slots_used", ()] == samples["mach_bank_slots", ()] > 0


def test_openmetrics_is_told_to_those_who_ask_for_it(server) -> None:
    answer = httpx.get(
        f"{server.url}/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"}
    )
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert {"mach_prompt_tokens", "mach_bank_hits"} <= {f.name for f in parse_openmetrics(answer.text)}


def test_clients_cannot_make_new_series(server) -> None:
    for path in ("/a", "/b", "/v1/models/x", "/v1/models/y/z"):
        httpx.get(f"{server.url}{path}")
    endpoints = {
        dict(labels)["endpoint"] for (name, labels) in scrape(server) if name == "mach_http_requests_total"
    }
    assert {"other", "/v1/models/{model:path}"} <= endpoints
    assert not {"/a", "/v1/models/x"} & endpoints
