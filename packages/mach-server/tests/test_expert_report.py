import time
from array import array
from base64 import b64decode

import msgspec

from mach_server.expert_report import expert_report
from mach_server.generation_thread import EngineSnapshot
from mach_store.expert_map import LayerExperts


def snapshot(experts: dict[int, LayerExperts]) -> EngineSnapshot:
    return EngineSnapshot(store={}, memory={}, experts=experts, forecast={}, taken=time.monotonic())


def bits(text: str) -> list[int]:
    return [byte >> bit & 1 for byte in b64decode(text) for bit in range(8)]


def test_an_expert_is_a_bit_and_a_level() -> None:
    uses = array("Q", [0, 1, 500, 1000, 0, 0, 0, 3, 999])
    report = expert_report(
        snapshot(
            {2: LayerExperts(b"\1\0\1\1\0\0\0\0\1", uses), 3: LayerExperts(b"\0" * 9, array("Q", [0] * 9))}
        ),
        running=True,
    )
    first, second = report["layers"]
    assert (first["layer"], first["experts"]) == (2, 9)
    assert bits(first["resident"])[:9] == [1, 0, 1, 1, 0, 0, 0, 0, 1]
    assert list(b64decode(first["uses"])) == [0, 1, 128, 255, 0, 0, 0, 1, 255]
    assert set(b64decode(second["uses"])) == {0}
    assert report["most_uses"] == 1000
    assert report["stale_generation_in_flight"] is True and report["age_seconds"] >= 0


def test_before_the_first_use_every_level_is_nought() -> None:
    report = expert_report(snapshot({0: LayerExperts(b"\0" * 4, array("Q", [0] * 4))}), running=False)
    assert report["most_uses"] == 0
    assert b64decode(report["layers"][0]["uses"]) == b"\0" * 4


def test_uses_are_null_where_routes_are_not_seen() -> None:
    report = expert_report(snapshot({0: LayerExperts(b"\1" * 4, None)}), running=False)
    assert report["most_uses"] is None and report["layers"][0]["uses"] is None


def test_a_model_without_a_store_has_no_layers() -> None:
    report = expert_report(snapshot({}), running=False)
    assert (report["layers"], report["most_uses"]) == ([], None)


def test_the_largest_models_stay_under_fifty_five_kilobytes() -> None:
    layers = {n: LayerExperts(b"\1" * 512, array("Q", [2**40] * 512)) for n in range(60)}
    assert len(msgspec.json.encode(expert_report(snapshot(layers), running=False))) < 55_000


def test_a_narrow_bank_shows_what_it_holds_and_what_was_used(start_server) -> None:
    server = start_server(gb=0.006)
    server.text(max_tokens=8)
    report = server.client.get("/cache/experts").json()
    summary = server.client.get("/cache/stats").json()["streaming_summary"]
    shown = {str(row["layer"]): row for row in report["layers"]}
    assert shown.keys() == summary["layers"].keys()
    for name, layer in summary["layers"].items():
        row = shown[name]
        assert sum(bits(row["resident"])) == layer["resident"] > 0
        assert max(b64decode(row["uses"])) > 0
        assert len(b64decode(row["uses"])) == row["experts"]
    assert sum(sum(bits(row["resident"])) for row in report["layers"]) == summary["experts_resident"]
    assert report["most_uses"] <= summary["hits"] + summary["misses"]


def test_a_whole_bank_shows_every_expert_and_its_uses(server) -> None:
    report = server.client.get("/cache/experts").json()
    assert all(sum(bits(row["resident"])) == row["experts"] for row in report["layers"])
    before = report["most_uses"]
    server.text(max_tokens=8)
    assert server.client.get("/cache/experts").json()["most_uses"] > before
