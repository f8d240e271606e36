"""The shipped reference checkpoint: what it weighs, whether it is whole, and what its card says."""

import re
from pathlib import Path

import pytest

from mach.io.arch_registry import detect_arch
from mach.io.checkpoint_path import resolve_checkpoint
from mach.io.inspection import inspect_checkpoint
from mach_pico import checkpoint_directory
from mach_store.sidecar.verification import verify_sidecar

MAX_BYTES = 24_000_000


def test_its_name_resolves_to_the_installed_directory() -> None:
    assert resolve_checkpoint("mach-pico") == checkpoint_directory()


def test_it_weighs_at_most_24_mb() -> None:
    assert sum(p.stat().st_size for p in checkpoint_directory().rglob("*") if p.is_file()) <= MAX_BYTES


def test_it_is_a_sliced_4_bit_qwen3_moe_with_widths_that_2_bit_blocks_fit() -> None:
    inspection = inspect_checkpoint(checkpoint_directory())
    assert detect_arch(checkpoint_directory()) == "qwen3_moe"
    assert (inspection.layout, inspection.quantization.bits) == ("sliced", 4)
    shape = inspection.shape
    assert shape.hidden_size % 256 == 0 and shape.expert_width % 256 == 0
    assert shape.num_experts >= 32 and shape.top_k == 4 and shape.num_layers >= 6


def test_every_record_of_its_sidecar_is_what_was_written() -> None:
    assert verify_sidecar(str(checkpoint_directory() / "expert_sidecar")) == []


@pytest.mark.parametrize("subject", ["licen", "bits per byte", "perplexity", "tool", "skew"])
def test_its_card_speaks_of(subject: str) -> None:
    card = (Path(checkpoint_directory()).parent / "MODEL_CARD.md").read_text().lower()
    assert re.search(subject, card)
