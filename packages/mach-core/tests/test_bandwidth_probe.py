import os
from pathlib import Path

import pytest

from mach.errors import CommandError
from mach.preflight import bandwidth_probe
from mach.preflight.bandwidth_probe import measure_bandwidth


@pytest.fixture(autouse=True)
def short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth_probe, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(bandwidth_probe, "TEMPORARY_BYTES", 4 << 20)
    monkeypatch.setattr(bandwidth_probe, "MEMORY_BYTES", 1 << 20)


def test_a_probe_leaves_nothing_and_finds_positive_rates(tmp_path: Path) -> None:
    found = measure_bandwidth(str(tmp_path), 100_000, str(tmp_path / "cache"))
    assert found.disk > 0
    assert found.memory > 0
    assert found.block % (1 << 14) == 0
    assert os.listdir(tmp_path / "cache") == []


def test_a_probe_whose_time_is_over_before_it_begins_has_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bandwidth_probe, "PROBE_SECONDS", 0.0)
    assert measure_bandwidth(str(tmp_path), 1 << 14, str(tmp_path / "cache")).disk > 0


def test_the_checkpoints_own_large_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth_probe, "LEAST_FILE", 1 << 20)
    (tmp_path / "model.safetensors").write_bytes(os.urandom(2 << 20))
    assert measure_bandwidth(str(tmp_path), 1 << 16, str(tmp_path / "cache")).disk > 0
    assert not (tmp_path / "cache").exists()


def test_a_place_where_nothing_can_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CommandError, match="--measure-disk: .*file"):
        measure_bandwidth(str(tmp_path), 1 << 16, str(tmp_path / "file"))
