from __future__ import annotations

import mlx.core as mx
import pytest

from mach_store.bank_form import StoredForm
from mach_store.scratch_arena import ScratchArena
from mach_store.sidecar.sidecar_source import SidecarSource


@pytest.fixture
def kinds(checkpoints):
    source = SidecarSource(str(checkpoints.engine() / "expert_sidecar"))
    yield list(dict.fromkeys(source.schemas.values()))
    source.close()


def test_an_arena_takes_memory_at_its_first_use_and_what_it_said(kinds, native_reader) -> None:
    arena = ScratchArena(StoredForm(mx.bfloat16, native_reader), 3, reclaim=False)
    assert arena.bytes_in_use == 0 < arena.nbytes(kinds)
    for kind in kinds:
        assert arena.arrays(kind) is arena.arrays(kind)
    assert arena.bytes_in_use == arena.nbytes(kinds)
    arena.end_prompt(pages=False)
    assert arena.bytes_in_use == arena.nbytes(kinds), "nobody asked for the memory"
    assert arena.reclaimed_bytes == 0


def test_what_is_reclaimed_is_counted_once_for_each_prompt_that_used_the_arena(kinds, native_reader) -> None:
    arena = ScratchArena(StoredForm(mx.bfloat16, native_reader), 3, reclaim=True)
    each = arena.nbytes(kinds[:1])
    for prompt in (1, 2):
        arena.arrays(kinds[0])
        arena.end_prompt(pages=False)
        arena.end_prompt(pages=False)
        assert arena.bytes_in_use == 0
        assert arena.reclaimed_bytes == prompt * each
