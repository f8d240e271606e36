from pathlib import Path

from mach.preflight.machine import Machine, linux_machine, mac_machine, this_machine

GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)


MEMINFO = {"proc/meminfo": f"MemTotal: {16 << 20} kB\nMemFree: 1 kB\nMemAvailable: {8 << 20} kB\n"}


def test_without_a_cgroup_what_the_kernel_calls_available_counts(tmp_path: Path) -> None:
    assert linux_machine(write(tmp_path, MEMINFO)) == Machine("cpu", 16 * GIB, 8 * GIB, "MemAvailable")


def test_the_tightest_cgroup_above_the_process_counts_with_its_page_cache_as_free(tmp_path: Path) -> None:
    cgroup = "sys/fs/cgroup"
    files = MEMINFO | {
        "proc/self/cgroup": "0::/outer/inner\n",
        f"{cgroup}/outer/inner/memory.max": "max\n",
        f"{cgroup}/outer/inner/memory.current": "5\n",
        f"{cgroup}/outer/memory.max": f"{4 * GIB}\n",
        f"{cgroup}/outer/memory.current": f"{3 * GIB}\n",
        f"{cgroup}/outer/memory.stat": f"anon 5\ninactive_file {GIB}\n",
    }
    assert linux_machine(write(tmp_path, files)) == Machine("cpu", 4 * GIB, 2 * GIB, "cgroup limit")


def test_the_older_cgroups_count_too(tmp_path: Path) -> None:
    files = MEMINFO | {
        "proc/self/cgroup": "5:cpu:/x\n4:memory:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GIB}\n",
    }
    assert linux_machine(write(tmp_path, files)) == Machine("cpu", 2 * GIB, 0, "cgroup limit")


def test_an_unreadable_proc_means_unknown(tmp_path: Path) -> None:
    assert linux_machine(str(tmp_path)).available_bytes is None


def test_macs_are_given_metals_share_or_their_wired_limit() -> None:
    assert mac_machine("metal", 24 * GIB, 0).available_bytes == 16 * GIB
    assert mac_machine("metal", 64 * GIB, 0).available_bytes == 48 * GIB
    assert mac_machine("metal", 64 * GIB, 60 * GIB).available_bytes == 60 * GIB


def test_this_machine_knows_something() -> None:
    machine = this_machine()
    assert machine.backend in ("cpu", "metal")
    assert machine.source
