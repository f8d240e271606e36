import mlx.core as mx
import pytest

from mach.io.inspection import inspect_checkpoint
from mach_store.resident_cache import ResidentStackedExpertCache


@pytest.mark.parametrize("compute", [mx.float32, mx.bfloat16])
def test_every_expert_is_in_memory_in_the_compute_dtype(checkpoints, compute) -> None:
    store = ResidentStackedExpertCache(inspect_checkpoint(checkpoints.stacked()), compute)
    layer = store.layers[1]
    assert layer.components["up_proj"]["scales"].dtype == compute
    assert layer.components["up_proj"]["weight"].dtype == mx.uint32
    assert layer.components["up_proj"]["weight"].shape[0] == layer.num_experts == 8
    assert layer.device_slots.tolist() == list(range(8))
    held = sum(
        array.nbytes
        for view in store.layers.values()
        for parts in view.components.values()
        for array in parts.values()
    )
    stats = store.stats()
    assert (stats["bank_bytes"], stats["experts_resident"]) == (held, 16)
    assert stats["residency"] == "stacked"
    assert store.host_free
