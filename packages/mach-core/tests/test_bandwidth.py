from pathlib import Path

import pytest

from mach.preflight.bandwidth import Bandwidth, cached_bandwidth, remember_bandwidth

MEASURED = Bandwidth(disk=1e9, memory=2e9, block=16384, direct=True, measured="2026-01-01")


def test_a_measurement_is_kept_per_disk(tmp_path: Path) -> None:
    root = str(tmp_path / "cache")
    assert cached_bandwidth(root, str(tmp_path)) is None
    remember_bandwidth(root, str(tmp_path), MEASURED)
    assert cached_bandwidth(root, str(tmp_path)) == MEASURED
    assert cached_bandwidth(root, str(tmp_path / "nowhere")) is None


@pytest.mark.parametrize("text", ["", "[]", '{"device-unknown": 5}', '{"device-unknown": {"disk": "x"}}'])
def test_a_spoilt_cache_is_no_measurement(tmp_path: Path, text: str) -> None:
    (tmp_path / "bandwidth.json").write_text(text)
    assert cached_bandwidth(str(tmp_path), str(tmp_path / "nowhere")) is None


def test_a_cache_that_cannot_be_written_is_said_and_survived(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    remember_bandwidth(str(tmp_path / "file"), str(tmp_path), MEASURED)
    assert "not kept" in capsys.readouterr().err
