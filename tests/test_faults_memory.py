"""A failing disk while the memory limit of a busy server is lowered: a smaller bank reads all the more."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from disk_faults import DiskFaults, possible
from faulty_serving import eventually, serving
from memory_group import MemoryGroup, memory_group

from mach.io.checkpoint_path import resolve_checkpoint
from mach_store import page_return
from mach_store.synthetic_checkpoint import qwen3_moe_config, write_synthetic_checkpoint

CONFIG = qwen3_moe_config(
    hidden=512, layers=4, experts=64, expert_width=768, head_dim=64, context=2048, group_size=64
)
LIMIT = 900_000_000
pytestmark = [
    pytest.mark.skipif(not possible(), reason="LD_PRELOAD"),
    pytest.mark.skipif(page_return.refusal() is not None, reason=str(page_return.refusal())),
]


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    with memory_group(LIMIT) as made:
        yield made


def test_a_bank_that_shrinks_on_a_failing_disk_gives_right_answers_or_errors(
    tmp_path: Path, group: MemoryGroup
) -> None:
    checkpoint, faults = tmp_path / "checkpoint", DiskFaults(tmp_path)
    write_synthetic_checkpoint(checkpoint, CONFIG, tokenizer_from=resolve_checkpoint("mach-pico"))
    with serving(checkpoint, environment=faults.environment, gb=None, enter=group.enter) as server:
        before = server.stats()["memory"]
        faults.set(seed=3, fails=10, ends=10, flips=10, shortened=100)
        with server.load():
            for _ in range(2):
                size = server.stats()["memory"]["bank_bytes"]
                group.limit = group.used + before["pressure"]["reserve_bytes"] // 2
                eventually(lambda size=size: server.stats()["memory"]["bank_bytes"] < size)
                server.until("^right$", times=1)
            # What a small bank needs of the disk fails before long; of a sound one it does not.
            faults.set(seed=4, flips=500)
            server.until("layer_N.bin: layer N, expert N: .* checksum")
            faults.set()
            server.until("^right$", times=8)
        server.answers_are_right()
        after = server.stats()["memory"]
        assert after["bank_bytes"] < before["bank_bytes"] == after["bank_declared_bytes"]
        assert group.kills == 0
