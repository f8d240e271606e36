from collections.abc import Callable
from pathlib import Path

import pytest

from mach.io.inspection import CheckpointInspection, inspect_checkpoint
from mach.io.sidecar_layout import LayerFile, SidecarLayout, build_schema
from mach.preflight.machine import Machine
from mach.preflight.memory import (
    estimate_memory,
    memory_verdict,
)
from mach.preflight.memory_needs import (
    LOADER_RESERVE_BYTES,
    LONGEST_CHUNK,
    PREFILL_CHUNK,
    RUNTIME_BYTES,
    TRANSIENT_BYTES,
    prefill_chunk,
    reserve_bytes,
    row_bytes,
)
from mach.preflight.memory_plan import MemoryBudgets


def bank(size: int) -> MemoryBudgets:
    return MemoryBudgets(expert_cache=size)


METAL, CPU = (Machine(backend, 64 << 30, 48 << 30, "test") for backend in ("metal", "cpu"))
QUANTIZED = {"quantization": {"bits": 4, "group_size": 64}}


@pytest.fixture
def inspection(
    families: dict[str, dict], make_checkpoint: Callable[..., Path], stacked: Callable[..., dict]
) -> CheckpointInspection:
    config = families["qwen3_moe"] | QUANTIZED
    return inspect_checkpoint(make_checkpoint(config, stacked(config, 4)))


WEIGHTS = 3 * 64 * 128 // 2  # one expert, 4-bit
SCALES = 2 * 3 * 64 * 128 // 64 * 2  # scales and biases in bfloat16


def test_on_metal_memory_is_what_the_disk_holds(inspection: CheckpointInspection) -> None:
    memory = estimate_memory(inspection, None, METAL, context=256)
    assert (
        memory.experts.layer_records == memory.experts.layer_slots == dict.fromkeys((0, 1), WEIGHTS + SCALES)
    )
    assert memory.bank_share == 1.0
    assert memory.streaming.parts == {
        "expert cache": inspection.expert_bytes,
        "other weights": inspection.other_bytes,
        "KV at 256 tokens": 256 * 2 * 2 * 2 * 32 * 2,
        "prefill activations": 256 * 2 * (2 * (2 * 128 + 3 * 64) + 8 * 128),
        "runtime": RUNTIME_BYTES,
    }
    assert memory.streaming.working_set == memory.resident.working_set == sum(memory.resident.parts.values())


def test_on_the_cpu_floats_are_widened_and_packed_weights_are_not(inspection: CheckpointInspection) -> None:
    memory = estimate_memory(inspection, None, CPU, context=256)
    assert memory.experts.layer_slots == dict.fromkeys((0, 1), WEIGHTS + 2 * SCALES)
    assert memory.experts.layer_records == dict.fromkeys((0, 1), WEIGHTS + SCALES)
    assert memory.streaming.parts["other weights"] == 2 * inspection.other_bytes
    assert memory.streaming.parts["load transient"] == 256 * 128 * 2  # the embedding, as stored


def test_a_chunk_is_as_long_as_the_reserve_holds_its_activations(inspection: CheckpointInspection) -> None:
    assert prefill_chunk(inspection, "metal") == PREFILL_CHUNK, "longer ones were not tried there"
    room = LOADER_RESERVE_BYTES - RUNTIME_BYTES - TRANSIENT_BYTES
    chunks = {}
    for hidden in (128, 2048, 2880, 4096, 8192):
        shape = inspection.shape._replace(hidden_size=hidden, expert_width=hidden // 2, top_k=8)
        model = inspection._replace(shape=shape)
        chunk = chunks[hidden] = prefill_chunk(model, "cpu")
        fits = row_bytes(model, "cpu", chunk) <= room
        assert fits or chunk == PREFILL_CHUNK
        assert chunk == LONGEST_CHUNK or row_bytes(model, "cpu", 2 * chunk) > room
        assert reserve_bytes(model, "cpu") == max(
            LOADER_RESERVE_BYTES, RUNTIME_BYTES + TRANSIENT_BYTES + row_bytes(model, "cpu", PREFILL_CHUNK)
        ), "the reserve does not grow with it"
    assert chunks == {128: 2048, 2048: 1024, 2880: 512, 4096: 512, 8192: 512}
    memory = estimate_memory(inspection, None, CPU, context=4096)
    scores = 512 * 4 * 4 * 4096
    shorter = row_bytes(inspection, "cpu", 512) + scores
    assert memory.streaming.parts["prefill activations"] == max(shorter, row_bytes(inspection, "cpu", 2048))


def test_a_bank_is_whole_slots_and_needs_scratch_if_it_does_not_hold_all(
    inspection: CheckpointInspection,
) -> None:
    slot = WEIGHTS + SCALES
    memory = estimate_memory(inspection, None, METAL, context=256, budgets=bank(5 * slot + 1))
    assert memory.bank_bytes == 5 * slot
    assert memory.bank_share == 5 / 16
    assert memory.streaming.parts["prefill scratch"] == 8 * slot + TRANSIENT_BYTES
    assert memory.experts.least_bank(2) == 4 * slot


def test_a_sidecars_records_count_where_there_is_one(inspection: CheckpointInspection) -> None:
    plain = dict.fromkeys(("gate_proj", "up_proj", "down_proj"))
    schema = build_schema([("gate_proj.weight", "bfloat16", (4, 8))], plain)
    layers = tuple(
        LayerFile(
            index=i, file=f"layer_{i:02d}.bin", num_experts=8, stride=16384, schema=schema, checksums=()
        )
        for i in (0, 1)
    )
    layout = SidecarLayout(model_type="qwen3_moe", alignment=16384, layers=layers)
    memory = estimate_memory(inspection, layout, CPU, context=256, budgets=bank(128))
    assert memory.experts.layer_records == {0: 64, 1: 64}
    assert memory.experts.layer_slots == {0: 128, 1: 128}
    assert memory.experts.scratch(8) == 8 * 128  # one arena for one record shape


def test_the_default_bank_is_half_of_what_is_free(inspection: CheckpointInspection) -> None:
    slot = WEIGHTS + SCALES
    free = LOADER_RESERVE_BYTES + inspection.other_bytes + 10 * slot
    machine = Machine("metal", free, free, "test")
    memory = estimate_memory(inspection, None, machine, context=256)
    assert memory.bank_bytes == 5 * slot


def test_what_the_loader_refuses_does_not_fit(inspection: CheckpointInspection) -> None:
    keys_and_values = 256 * 2 * 2 * 2 * 32 * 2  # for as few tokens as are ever planned for
    needed = LOADER_RESERVE_BYTES + inspection.other_bytes + (5 + 8) * (WEIGHTS + SCALES) + keys_and_values
    for available, verdict in ((needed, "fits"), (needed - 1, "wont_fit")):
        machine = Machine("metal", available, available, "test")
        memory = estimate_memory(inspection, None, machine, context=256, budgets=bank(5 * (WEIGHTS + SCALES)))
        assert memory.streaming.verdict == verdict


def test_verdicts_have_a_margin() -> None:
    assert [memory_verdict(size, 100) for size in (85, 86, 100, 101)] == [
        "fits",
        "tight",
        "tight",
        "wont_fit",
    ]
    assert memory_verdict(1, None) == "unknown"


def test_bf16_streaming_counts_floats_and_an_arena_of_widened_ones(inspection: CheckpointInspection) -> None:
    floats = 3 * 64 * 128 * 2  # one expert in bfloat16
    memory = estimate_memory(inspection, None, CPU, context=256, budgets=bank(5 * floats + 1))
    assert memory.experts.layer_floats == dict.fromkeys((0, 1), floats)
    assert memory.float_bank_bytes == 5 * floats
    assert memory.experts.least_float_bank(2) == 4 * floats
    assert memory.bf16_streaming is not None
    # 8 experts in float32; 4 packed ones staged for the bank and 4 for the arena, their scales widened.
    assert memory.bf16_streaming.parts["arena"] == 8 * 2 * floats + 8 * (WEIGHTS + 2 * SCALES)
    whole = estimate_memory(inspection, None, METAL, context=256)
    assert whole.bf16_streaming is not None
    assert "arena" not in whole.bf16_streaming.parts
    assert whole.bf16_streaming.parts["expert cache"] == 16 * floats


def test_mlx_lms_own_model_holds_every_weight(inspection: CheckpointInspection) -> None:
    stored = sum(entry.nbytes for entry in inspection.tensors.values())
    parts = estimate_memory(inspection, None, METAL, context=256).unswapped.parts
    assert parts["all weights"] == stored
    assert "other weights" not in parts
    wide = estimate_memory(inspection, None, CPU, context=256).unswapped.parts
    assert wide["all weights"] == stored + 16 * SCALES + inspection.other_bytes
    roomless = Machine("cpu", 1 << 30, stored, "test")
    assert estimate_memory(inspection, None, roomless, context=256).unswapped.verdict == "wont_fit"
