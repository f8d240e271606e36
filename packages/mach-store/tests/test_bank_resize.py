"""A bank shrinks and grows between passes: its tables hold, its experts are right, and memory comes back."""

import json
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mach_store import page_return
from mach_store.bank_cache import BankCache
from mach_store.errors import BankResizeError
from mach_store.expert_arrays import slot_bytes
from mach_store.scatter_reader import python_twin
from mach_store.synthetic_checkpoint import qwen3_moe_config, write_synthetic_checkpoint

pytestmark = pytest.mark.skipif(page_return.refusal() is not None, reason=str(page_return.refusal()))


def bank_over(source, *, slots: float, top_k: int = 2, reader=None) -> BankCache:
    size = max(slot_bytes(schema, mx.bfloat16) for schema in source.schemas.values())
    return BankCache(
        source,
        reader or python_twin(),
        budget_bytes=int(slots * size),
        top_k=top_k,
        compute=mx.bfloat16,
    )


def assert_every_slot_holds_its_expert(bank: BankCache) -> None:
    for layer, view in bank.layers.items():
        rows = view.pool.arrays.rows
        for (owner, expert), slot in view.pool.table.items():
            if owner == layer:
                assert b"".join(row[slot].tobytes() for row in rows) == bank.source.record(owner, expert)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_any_order_of_passes_and_resizes_keeps_the_bank_right(
    schema, file_source, native_reader, data
) -> None:
    source = file_source({0: schema(), 1: schema(64, 32), 3: schema()}, 5)
    reader = data.draw(st.sampled_from([native_reader, python_twin()]))
    bank = bank_over(source, slots=data.draw(st.floats(6, 16)), reader=reader)
    declared, allocated = bank.budget_bytes, bank.nbytes
    for _ in range(data.draw(st.integers(1, 25))):
        if data.draw(st.booleans()):
            asked = data.draw(st.integers(0, declared + 1000))
            became = bank.resize(asked)
            assert became == bank.nbytes == sum(p.slots * p.slot_bytes for p in bank._pools)
            assert became <= max(bank.least_bytes, min(asked, declared))
            assert bank.least_bytes <= became <= allocated
        else:
            layer = data.draw(st.sampled_from([0, 1, 3]))
            wanted = sorted(data.draw(st.sets(st.integers(0, 4), min_size=1, max_size=2)))
            bank.fence(mx.array([wanted]))
            assert sorted(bank.layers[layer].acquire(wanted)) == wanted
        bank.check()
        assert_every_slot_holds_its_expert(bank)
    assert bank.resize(declared) == allocated
    bank.check()
    source.close()


def test_shrinking_gives_up_what_the_policy_gives_up_and_keeps_the_rest(schema, file_source) -> None:
    source = file_source({0: schema()}, 8)
    bank = bank_over(source, slots=8)
    for expert in (7, 0, 1, 2, 3, 4, 5, 6, 0):
        bank.fence(mx.array([expert]))
        bank.layers[0].acquire([expert])
    reads = len(source.reads)
    bank.resize(bank.budget_bytes // 2)
    assert bank.slots == 4
    assert bank.layers[0].resident(range(8)) == [0, 4, 5, 6], "the four used last"
    assert (bank.given_up, bank.totals().evictions) == (4, 0)
    assert len(source.reads) == reads, "what stays is moved, not read again"
    assert_every_slot_holds_its_expert(bank)


def test_floors_follow_the_size(schema, file_source) -> None:
    bank = bank_over(file_source({0: schema(), 1: schema()}, 8), slots=12)
    for layer, experts in ((0, range(6)), (1, range(6))):
        for expert in experts:
            bank.fence(mx.array([expert]))
            bank.layers[layer].acquire([expert])
    bank.resize(bank.budget_bytes // 2)
    pool = bank.layers[0].pool
    assert (pool.slots, pool.share) == (6, 3)
    for expert in range(6):
        bank.fence(mx.array([expert]))
        bank.layers[1].acquire([expert])
    assert pool.occupancy == {0: 2, 1: 4}, "the flat layer leaves the other its floor"


def test_a_whole_bank_that_shrinks_asks_the_host_again_until_it_is_whole_again(schema, file_source) -> None:
    bank = bank_over(file_source({0: schema(), 1: schema()}, 4), slots=8)
    bank.prewarm()
    assert bank.host_free
    whole = bank.nbytes
    bank.resize(whole - 1)
    assert not bank.host_free
    assert all(view.device_slots is None for view in bank.layers.values())
    assert bank.scratch_bytes > 0, "a prompt now needs the arena"
    assert bank.resize(whole) == whole
    assert not bank.host_free, "one expert is missing"
    for layer, view in bank.layers.items():
        bank.fence(mx.array([0]))
        for expert in range(4):
            view.acquire([expert])
        slots = view.device_slots
        assert slots is not None
        assert slots.tolist() == [view.pool.table[layer, expert] for expert in range(4)]
    assert bank.host_free
    assert_every_slot_holds_its_expert(bank)


def test_what_is_asked_for_is_bounded_by_one_tokens_experts_and_the_start(schema, file_source) -> None:
    bank = bank_over(file_source({0: schema(), 1: schema()}, 6), slots=7.5)
    start = bank.nbytes
    assert bank.resize(0) == bank.least_bytes == 4 * bank._pools[0].slot_bytes
    assert bank.budget_bytes == bank.least_bytes
    assert bank.resize(1 << 60) == start
    assert bank.budget_bytes == bank.declared_bytes


def test_what_is_held_is_finished_before_slots_go(schema, file_source) -> None:
    source = file_source({0: schema()}, 6)
    bank = bank_over(source, slots=6)
    view = bank.layers[0]
    bank.fence(mx.array([0, 5]))
    slot = view.acquire([0, 5])[5]
    weight = view.components["gate_proj"]["weight"]
    held = weight[mx.array([slot])].flatten() + mx.array(0, mx.uint32)
    bank.hold(held)
    for expert in range(5):
        bank.layers[0].uses[expert] += 1
    bank.resize(0)
    bank.check()
    assert np.array_equal(np.array(held), np.frombuffer(source.record(0, 5)[: held.nbytes], np.uint32))


def test_stats_tell_the_size_and_why_it_cannot_change(schema, file_source, monkeypatch) -> None:
    bank = bank_over(file_source({0: schema()}, 6), slots=5)
    bank.resize(3 * bank._pools[0].slot_bytes)
    stats = bank.stats()
    assert (stats["bank_slots"], stats["bank_bytes"]) == (3, 3 * bank._pools[0].slot_bytes)
    assert stats["budget_bytes"] == stats["bank_bytes"] < stats["declared_budget_bytes"]
    assert (stats["resizable"], stats["resize_refusal"]) == (True, None)
    monkeypatch.setattr(page_return.sys, "platform", "darwin")
    elsewhere = bank_over(file_source({0: schema()}, 6), slots=5)
    assert elsewhere.stats()["resize_refusal"] == "giving memory back is not built for darwin"
    with pytest.raises(BankResizeError, match="keeps its size: giving memory back is not built for darwin"):
        elsewhere.resize(0)
    assert elsewhere.slots == 5


def test_a_system_that_refuses_leaves_the_bank_at_its_size(schema, file_source, monkeypatch) -> None:
    bank = bank_over(file_source({0: schema(), 1: schema(64, 32)}, 6), slots=9)
    for layer in (0, 1):
        bank.fence(mx.array([0]))
        bank.layers[layer].acquire(range(4))
    slots, size = bank.slots, bank.nbytes

    def refuse(*_: object) -> None:
        raise BankResizeError("the system does not take memory back: madvise: Invalid argument")

    monkeypatch.setattr("mach_store.expert_arrays.release_rows", refuse)
    with pytest.raises(BankResizeError, match="Invalid argument"):
        bank.resize(0)
    assert (bank.slots, bank.nbytes, bank.budget_bytes) == (slots, size, bank.declared_bytes)
    bank.check()
    assert_every_slot_holds_its_expert(bank)
    assert not bank.stats()["resizable"]


def test_no_native_extension_is_a_refusal_with_its_reason(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "lme_mlx_pread_ext", None)
    assert "lme_mlx_pread_ext cannot be imported" in str(page_return.refusal())


CHILD = """
import json, sys
import mlx.core as mx
from mach_store.bank_cache import BankCache
from mach_store.scatter_reader import open_reader
from mach_store.settings import StoreSettings
from mach_store.sidecar.sidecar_source import SidecarSource

def resident():
    with open("/proc/self/status") as status:
        return 1024 * int(next(line for line in status if line.startswith("RssAnon")).split()[1])

source = SidecarSource(sys.argv[1])
size = source.num_experts * sum(schema.nbytes for schema in source.schemas.values())
bank = BankCache(source, open_reader(StoreSettings()), budget_bytes=2 * size, top_k=2, compute=mx.float32)
bank.prewarm()
seen = [(bank.nbytes, resident())]
for part in (0.5, 0.1, 0.6, 1.0, 0.0):
    bank.resize(int(part * bank.total_bytes))
    for layer, view in bank.layers.items():
        for expert in range(view.num_experts):
            bank.fence(mx.array([expert]))
            view.acquire([expert])
    seen.append((bank.nbytes, resident()))
print(json.dumps(seen))
"""


def test_resident_memory_follows_the_banks_size(checkpoints, tmp_path) -> None:
    config = qwen3_moe_config(hidden=512, layers=2, experts=32, expert_width=1024, group_size=64)
    write_synthetic_checkpoint(tmp_path / "big", config)
    command = [sys.executable, "-c", CHILD, str(tmp_path / "big" / "expert_sidecar")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    seen = json.loads(run.stdout)
    whole, before = seen[0]
    assert whole > 60_000_000
    for size, resident in seen[1:]:
        # What else the process has may have grown a little meanwhile: readers' buffers, numpy.
        assert abs((before - resident) - (whole - size)) < 3_000_000, seen
