"""The forecast of other sizes of bank, as the server's reports tell it."""

from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

POINT = {"relative", "bank_slots", "bank_bytes", "limit", "hit_rate", "tokens_per_second"}


def curve_of(server) -> dict:
    return server.client.get("/cache/stats").json()["miss_ratio_curve"]


def gauges(server) -> dict[str, dict[str, float]]:
    """Name → value of `relative` → value."""
    text = httpx.get(f"{server.url}/metrics").text
    return {
        family.name: {sample.labels["relative"]: sample.value for sample in family.samples}
        for family in text_string_to_metric_families(text)
        if family.name.startswith("mach_bank_forecast")
    }


@pytest.fixture(scope="module")
def narrow(start_server):
    """A bank of a third of the experts."""
    return start_server(gb=0.008)


def test_before_the_first_token_it_says_so_and_afterwards_it_is_there(narrow) -> None:
    reason = "no token has been decoded yet"
    assert curve_of(narrow) == {"scope": "decode", "points": None, "reason": reason}
    assert narrow.stats()["bank_forecast"] == f"none: {reason}"
    assert set(gauges(narrow)) == {
        f"mach_bank_forecast_{what}" for what in ("bytes", "hit_rate", "tokens_per_second")
    }
    assert not any(gauges(narrow).values())
    narrow.chat(max_tokens=40, temperature=0)
    curve = curve_of(narrow)
    assert (curve["scope"], curve["reason"]) == ("decode", None)
    assert [point["relative"] for point in curve["points"]] == [0.5, 1.0, 1.5, 2.0]
    assert all(set(point) == POINT for point in curve["points"])
    assert 0 < curve["points"][0]["hit_rate"] <= curve["points"][3]["hit_rate"] <= 1
    assert curve["points"][1]["bank_bytes"] == narrow.service.facts.bank_bytes
    assert curve["sampled_keys"] == curve["keys"] == 6 * 32 and curve["sample_rate"] == 1.0
    assert 0 < curve["tokens"] < 40 and curve["references"] == 24 * curve["tokens"]


def test_the_other_reports_say_the_same(narrow) -> None:
    narrow.chat(max_tokens=8)
    curve = curve_of(narrow)
    told = gauges(narrow)
    for point in curve["points"]:
        size = f"{point['relative']:g}"
        assert told["mach_bank_forecast_bytes"][size] == point["bank_bytes"]
        assert told["mach_bank_forecast_hit_rate"][size] == point["hit_rate"]
        assert told["mach_bank_forecast_tokens_per_second"][size] == point["tokens_per_second"] > 0
    parts = narrow.stats()["bank_forecast"].split("; ")
    for part, point in zip(parts, curve["points"], strict=True):
        assert part.startswith(f"{point['relative']:g}x ")
        assert f"hit rate {point['hit_rate']:.3f}" in part and part.endswith(" tok/s")


def test_where_every_expert_is_in_memory_there_is_a_reason_instead(
    server, start_server, stacked: Path
) -> None:
    servers = {
        "nothing is missed": server,
        "there is no bank": start_server(str(stacked), residency="stacked"),
        "mlx-lm's own": start_server(str(stacked), residency="unswapped"),
    }
    for why, whole in servers.items():
        whole.chat(max_tokens=4)
        curve = curve_of(whole)
        assert (curve["scope"], curve["points"]) == ("decode", None) and why in curve["reason"]
        assert whole.stats()["bank_forecast"] == f"none: {curve['reason']}"
        assert not any(gauges(whole).values())
