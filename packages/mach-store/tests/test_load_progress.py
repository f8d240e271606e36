import mlx.core as mx
import mlx.nn as nn
import pytest

from mach.io.inspection import inspect_checkpoint
from mach_store import load_progress
from mach_store.load_progress import evaluate_weights, unheard
from mach_store.resident_cache import ResidentStackedExpertCache


@pytest.fixture
def heard():
    told = []
    return told, lambda *state: told.append(state)


def test_weights_are_read_piece_by_piece_and_each_piece_is_told(heard, monkeypatch) -> None:
    told, listen = heard
    monkeypatch.setattr(load_progress, "PIECE_BYTES", 1000)
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(3)))
    evaluate_weights(model, listen)
    total = 3 * (16 * 16 + 16) * 4
    assert told[0] == ("weights", 0, total) and told[-1] == ("weights", total, total)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert len(told) >= 4
    model.apply(lambda array: array + 1)
    evaluate_weights(model, unheard)
    evaluate_weights(nn.ReLU(), listen)
    assert told[-1] == ("weights", 0, 0)


def test_prewarming_tells_of_every_expert_and_a_small_bank_of_none(heard, checkpoints, open_bank) -> None:
    told, listen = heard
    open_bank(checkpoints.engine(), 15).prewarm(listen)
    assert told == []
    bank = open_bank(checkpoints.engine(), 16)
    bank.prewarm(listen)
    assert told[0] == ("experts", 0, bank.nbytes) and told[-1] == ("experts", bank.nbytes, bank.nbytes)


def test_stacked_experts_are_told_layer_by_layer(heard, checkpoints) -> None:
    told, listen = heard
    inspection = inspect_checkpoint(checkpoints.stacked())
    ResidentStackedExpertCache(inspection, mx.float32, listener=listen)
    total = inspection.expert_bytes
    assert told == [("experts", total // 2, total), ("experts", total, total)]
