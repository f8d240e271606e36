import os
import sys

import pytest

from mach_store import machine_memory
from mach_store.machine_memory import available_bytes, peak_rss_bytes


def test_available_memory_is_positive_and_no_more_than_the_machine_has() -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_bytes() <= physical


def test_peak_memory_grows_with_what_is_allocated() -> None:
    before = peak_rss_bytes()
    block = bytearray(before + (64 << 20))
    assert peak_rss_bytes() >= before + (32 << 20)
    del block


@pytest.mark.skipif(sys.platform != "linux", reason="cgroups are Linux's")
def test_a_cgroups_limit_counts_and_its_page_cache_counts_as_free(monkeypatch, tmp_path) -> None:
    for name, text in {
        "max": "1000000",
        "current": "900000",
        "stat": "anon 5\ninactive_file 300000\n",
    }.items():
        (tmp_path / name).write_text(text)
    paths = tuple(str(tmp_path / name) for name in ("max", "current", "stat"))
    monkeypatch.setattr(machine_memory, "_CGROUPS", (paths,))
    assert available_bytes() == 400000
    (tmp_path / "max").write_text("max\n")
    assert available_bytes() > 1000000
