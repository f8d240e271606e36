from pathlib import Path

import pytest

from mach_store import memory_reading
from mach_store.memory_reading import CRITICAL, NORMAL, MemoryReading, read_memory


@pytest.fixture
def system(tmp_path: Path):
    """A function that writes files below a root."""

    def write(**files: str) -> str:
        for name, content in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return str(tmp_path)

    return write


MEMINFO = "MemTotal: 16000 kB\nMemFree: 100 kB\nMemAvailable:    9000 kB\n"


def read(root: str) -> MemoryReading:
    return read_memory(root, "linux")


def test_without_cgroups_memavailable_is_what_is_left(system) -> None:
    assert read(system(proc__meminfo=MEMINFO)) == MemoryReading(9_216_000, "MemAvailable")


def test_the_tightest_limit_of_version_2_counts_high_or_max_and_page_cache_does_not(system, tmp_path) -> None:
    system(proc__meminfo=MEMINFO)
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/cgroup").write_text("0::/outer/inner\n")
    inner, outer = tmp_path / "sys/fs/cgroup/outer/inner", tmp_path / "sys/fs/cgroup/outer"
    inner.mkdir(parents=True)
    for directory, maximum, high, current in (
        (outer, "5000000", "max", "1000000"),
        (inner, "max", "4000000", "3000000"),
    ):
        (directory / "memory.max").write_text(maximum + "\n")
        (directory / "memory.high").write_text(high + "\n")
        (directory / "memory.current").write_text(current + "\n")
    (inner / "memory.stat").write_text("anon 1\ninactive_file 500000\nactive_file 250000\n")
    assert read(str(tmp_path)) == MemoryReading(1_750_000, "memory.high")
    (inner / "memory.max").write_text("3500000\n")
    assert read(str(tmp_path)) == MemoryReading(1_250_000, "memory.max")
    (inner / "memory.max").write_text("1000000\n")
    assert read(str(tmp_path)).room_bytes == 0, "over the limit is no room, not less than none"


def test_version_1_counts_the_childrens_page_cache(system, tmp_path) -> None:
    system(proc__meminfo=MEMINFO)
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/box\n3:cpu,cpuacct:/\n0::/\n")
    box = tmp_path / "sys/fs/cgroup/memory/box"
    box.mkdir(parents=True)
    (box / "memory.limit_in_bytes").write_text("4000000\n")
    (box / "memory.usage_in_bytes").write_text("3000000\n")
    (box / "memory.stat").write_text(
        "inactive_file 1\ntotal_inactive_file 600000\ntotal_active_file 400000\n"
    )
    assert read(str(tmp_path)) == MemoryReading(2_000_000, "memory.limit_in_bytes")


def test_stalls_are_those_of_the_machine_or_of_the_own_cgroup(system, tmp_path) -> None:
    system(
        proc__meminfo=MEMINFO,
        proc__pressure__memory="some avg10=3.50 avg60=1.00 avg300=0.00 total=99\nfull avg10=2.00 total=1\n",
    )
    assert read(str(tmp_path)).stalled == 3.5
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/cgroup").write_text("0::/a\n")
    group = tmp_path / "sys/fs/cgroup/a"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("1\n")
    (group / "memory.pressure").write_text("some avg10=41.00 avg60=0.00 avg300=0.00 total=1\n")
    assert read(str(tmp_path)).stalled == 41.0
    (group / "memory.pressure").write_text("nonsense\n")
    assert read(str(tmp_path)).stalled == 3.5


def test_what_cannot_be_read_is_not_known(tmp_path, monkeypatch) -> None:
    assert read(str(tmp_path)) == MemoryReading(None, "/proc/meminfo cannot be read")
    assert read_memory("/", "freebsd14").room_bytes is None
    monkeypatch.setattr(memory_reading, "sysctl", lambda name: {memory_reading.MAC_LEVEL: 4}.get(name))
    assert read_memory("/", "darwin").level == CRITICAL
    monkeypatch.setattr(memory_reading, "sysctl", lambda name: None)
    assert read_memory("/", "darwin").level == NORMAL


def test_this_machine_can_be_read() -> None:
    reading = read_memory()
    assert reading.source
    assert reading.room_bytes is None or reading.room_bytes > 0
