"""The thread pool at the ends of a process's life: forks, and exits with reads under way."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "data"
    path.write_bytes(os.urandom(1 << 20))
    return str(path)


def test_a_forked_child_reads_with_threads_of_its_own(data) -> None:
    done = run(
        """
        import os, signal, sys, threading, zlib
        import mlx.core as mx
        from lme_mlx_pread_ext import ScatterPlan
        import liblme_expert_io
        path = sys.argv[1]
        fd = os.open(path, os.O_RDONLY)
        whole = open(path, "rb").read()
        crcs = [zlib.crc32(whole[i << 16:(i + 1) << 16]) for i in range(16)]
        bank = mx.zeros((16, 65536), mx.uint8)
        mx.eval(bank)
        plan = ScatterPlan([bank], [65536], [False])
        memory = bytearray(16 * 65536)
        places = [i << 16 for i in range(16)]
        def read():
            plan.read(range(16), [fd] * 16, places, crcs, threads=6)
            liblme_expert_io.read_records(
                [memory], [65536], range(16), [fd] * 16, places, crcs, threads=6
            )
        read()
        stop = threading.Event()
        def busy():
            own = ScatterPlan([other], [65536], [False])
            while not stop.is_set():
                own.read(range(16), [fd] * 16, places, threads=6)
        other = mx.zeros((16, 65536), mx.uint8)
        mx.eval(other)
        thread = threading.Thread(target=busy)
        thread.start()
        for _ in range(20):  # while another thread is in the middle of a batch
            child = os.fork()
            if child == 0:
                signal.alarm(20)  # a pool that waits for its parent's threads waits for ever
                read()
                read()
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            read()
        stop.set()
        thread.join()
        print("ok")
        """,
        data,
    )
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_the_interpreter_may_exit_while_daemon_threads_read(data) -> None:
    script = """
        import os, sys, threading, time
        import mlx.core as mx
        from lme_mlx_pread_ext import ScatterPlan
        fd = os.open(sys.argv[1], os.O_RDONLY)
        def busy():
            bank = mx.zeros((16, 65536), mx.uint8)
            mx.eval(bank)
            plan = ScatterPlan([bank], [65536], [False])
            try:
                while True:
                    plan.read(range(16), [fd] * 16, [i << 16 for i in range(16)], threads=4)
            except RuntimeError as error:
                assert "shutting down" in str(error)
                time.sleep(60)
        for _ in range(4):
            threading.Thread(target=busy, daemon=True).start()
        time.sleep(float(sys.argv[2]))
        print("ok")
        """
    for delay in ("0.01", "0.05", "0.1"):
        done = run(script, data, delay)
        assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_an_idle_pool_does_not_delay_exit(data) -> None:
    done = run(
        """
        import os, sys
        import liblme_expert_io
        fd = os.open(sys.argv[1], os.O_RDONLY)
        liblme_expert_io.read_records([bytearray(128)], [8], range(16), [fd] * 16, range(16), threads=16)
        print("mlx.core" in sys.modules)
        """,
        data,
    )
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
