import os
import subprocess
import sys

from mach.preflight.machine import this_machine
from mach_store.machine_memory import available_memory, peak_rss_bytes


def test_available_memory_is_what_the_preflight_sees() -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    machine = this_machine()
    seen = machine.available_bytes
    assert 0 < available_memory().nbytes <= physical
    assert available_memory().source in (machine.source, "all memory")
    assert seen is None or abs(available_memory().nbytes - seen) < 1 << 30


def test_peak_memory_grows_with_what_is_allocated() -> None:
    before = peak_rss_bytes()
    block = bytearray(before + (64 << 20))
    assert peak_rss_bytes() >= before + (32 << 20)
    del block


def test_a_childs_peak_does_not_count_its_parents_memory() -> None:
    block = bytearray(300 << 20)
    code = "from mach_store.machine_memory import peak_rss_bytes; print(peak_rss_bytes())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert int(run.stdout) < len(block)
