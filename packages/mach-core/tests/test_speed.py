from collections.abc import Callable
from pathlib import Path

import pytest

from mach.io.inspection import CheckpointInspection, inspect_checkpoint
from mach.io.quantization import QuantScheme, uniform_quantization
from mach.preflight.bandwidth import Bandwidth
from mach.preflight.machine import Machine
from mach.preflight.memory import estimate_memory
from mach.preflight.memory_plan import MemoryBudgets
from mach.preflight.speed import SpeedEstimate, estimate_speed

DISK = Bandwidth(disk=1e9, memory=1e11, block=16384, direct=True, measured="2026-01-01")


@pytest.fixture
def inspection(
    families: dict[str, dict], make_checkpoint: Callable[..., Path], stacked: Callable[..., dict]
) -> CheckpointInspection:
    config = families["qwen3_moe"] | {"num_experts": 64, "hidden_size": 1024, "moe_intermediate_size": 512}
    return inspect_checkpoint(make_checkpoint(config, stacked(config)))


def speed_of(
    inspection: CheckpointInspection, share: float, bandwidth: Bandwidth = DISK, backend: str = "metal"
) -> SpeedEstimate:
    machine = Machine(backend, 1 << 36, 1 << 36, "test")
    everything = estimate_memory(inspection, None, machine, context=256).bank_bytes
    memory = estimate_memory(
        inspection, None, machine, context=256, budgets=MemoryBudgets(expert_cache=round(everything * share))
    )
    return estimate_speed(inspection, memory, bandwidth)


def test_the_slow_end_is_slower_and_a_whole_bank_misses_nothing(inspection: CheckpointInspection) -> None:
    whole = speed_of(inspection, 1.0)
    assert whole.miss_bytes == (0, 0)
    assert whole.hit_rate == (1.0, 1.0)
    for share in (0.25, 0.5, 1.0):
        slow, fast = speed_of(inspection, share).tokens_per_second
        assert 0 < slow < fast


def test_a_larger_bank_or_a_faster_disk_is_never_slower(inspection: CheckpointInspection) -> None:
    shares = [speed_of(inspection, share).tokens_per_second for share in (0.1, 0.3, 0.6, 1.0)]
    assert shares == sorted(shares)
    faster = DISK._replace(disk=5e9)
    assert speed_of(inspection, 0.3, faster).tokens_per_second[1] >= shares[1][1]
    assert speed_of(inspection, 0.3, faster).tokens_per_second[0] > shares[1][0]


def test_the_formula_is_the_documented_one(inspection: CheckpointInspection) -> None:
    found = speed_of(inspection, 0.25)
    record = 2 * 2 * 3 * 1024 * 512 * 2  # layers, top-k, projections, bfloat16
    embedding = 256 * 1024 * 2  # of which a token takes one row; the head is another tensor
    assert found.active_bytes == inspection.other_bytes - embedding + record
    assert found.hit_rate == (0.25, 0.5)
    assert found.miss_bytes == (round(0.75 * record), record // 2)
    compute = found.active_bytes / (1e11 * 0.4)
    assert found.tokens_per_second[0] == pytest.approx(1 / (compute + 0.75 * record / 1e9 + 2 * 0.4e-3))


def test_the_cpu_is_bound_by_its_arithmetic(inspection: CheckpointInspection) -> None:
    slow, _ = speed_of(inspection, 1.0, backend="cpu").tokens_per_second
    macs = speed_of(inspection, 1.0).active_bytes / 2
    assert slow == pytest.approx(1 / (macs / 1.0e9 + 2 * 1.2e-3))


def test_misses_come_from_the_page_cache_at_the_fast_end_if_it_can_hold_all(
    inspection: CheckpointInspection,
) -> None:
    slow_disk = DISK._replace(disk=1e6)
    roomy = Machine("metal", 1 << 36, 1 << 36, "test")
    memory = estimate_memory(inspection, None, roomy, context=256, budgets=MemoryBudgets(expert_cache=10**8))
    cramped = memory._replace(machine=roomy._replace(available_bytes=memory.streaming.working_set))
    with_cache = estimate_speed(inspection, memory, slow_disk).tokens_per_second
    without = estimate_speed(inspection, cramped, slow_disk).tokens_per_second
    assert with_cache[0] == without[0]
    assert with_cache[1] > 10 * without[1]


def test_mxfp4_products_are_faster_than_affine_ones_on_the_cpu(inspection: CheckpointInspection) -> None:
    def slow_end(mode: str) -> float:
        packed = inspection._replace(quantization=uniform_quantization(QuantScheme(mode, 4, 32)))
        return speed_of(packed, 1.0, backend="cpu").tokens_per_second[0]

    assert slow_end("mxfp4") > slow_end("affine")
