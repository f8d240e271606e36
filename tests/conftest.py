from collections.abc import Iterator

import mlx.core as mx
import pytest


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu() -> Iterator[None]:
    """Exact comparisons hold on the CPU; a GPU's kernels change with the number of rows."""
    device = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(device)
