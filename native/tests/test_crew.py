"""The threads of the CPU kernels at the end of a process, and when several threads compute at a time."""

import subprocess
import sys
import textwrap
import threading

import mlx.core as mx
import numpy as np

from lme_cpu_kernels import DenseProduct


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_interpreter_may_exit_with_a_product_under_way_and_helpers_asleep_or_watching() -> None:
    for wait in ("mx.eval(y)", "mx.async_eval(y)", "mx.eval(y); time.sleep(0.05)"):
        done = run(
            f"""
            import time
            import mlx.core as mx
            mx.set_default_device(mx.cpu)
            from lme_cpu_kernels import DenseProduct
            weight = mx.ones((1, 2048, 2048))
            x = mx.ones((64, 2048))
            mx.eval(weight, x)
            y = DenseProduct({{"weight": weight}}, None, threads=3)(x)
            {wait}
            print("ok")
            """
        )
        assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_several_threads_may_compute_at_a_time() -> None:
    mx.set_default_device(mx.cpu)
    weight = mx.random.normal((1, 512, 1024), key=mx.random.key(1))
    x = mx.random.normal((8, 1024), key=mx.random.key(2))
    mx.eval(weight, x)
    product = DenseProduct({"weight": weight}, None, threads=3)
    expected = np.array(product(x))
    wrong = []

    def compute() -> None:
        # Streams belong to threads: each makes and evaluates its own graphs.
        with mx.stream(mx.new_stream(mx.cpu)):
            for _ in range(50):
                if not (np.array(product(x)) == expected).all():
                    wrong.append(1)
        mx.clear_streams()

    threads = [threading.Thread(target=compute) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
