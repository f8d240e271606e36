import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mach.io.arch_adapter import MoeShape
from mach.io.arch_registry import REGISTRY
from mach.preflight.draft_probe import DraftProbe, probe_draft

SHAPE = MoeShape(num_layers=8, num_experts=8, top_k=2, hidden_size=128, expert_width=64, moe_layers=(0,))
DRAFT = {
    "block_size": 16,
    "hidden_size": 128,
    "num_target_layers": 8,
    "dflash_config": {"mask_token_id": 5, "target_layer_ids": [1, 3, 5]},
}


def probe(directory: Path, model_type: str = "qwen3_moe") -> DraftProbe:
    return probe_draft(str(directory), REGISTRY[model_type], SHAPE)


def test_a_draft_that_fits_is_usable(tmp_path: Path, write_tensors: Callable[..., None]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DRAFT))
    write_tensors(tmp_path / "model.safetensors", {"fc.weight": ("BF16", (4, 4))})
    found = probe(tmp_path)
    assert (found.usable, found.nbytes) == (True, 32)
    assert not probe(tmp_path, "gemma4").usable


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_size": 64}, "hidden_size is 64, but the target's is 128"),
        ({"num_target_layers": 9}, "num_target_layers is 9"),
        ({"dflash_config": None}, "dflash_config is missing"),
        ({"dflash_config": {"mask_token_id": 5, "target_layer_ids": [8]}}, "target_layer_ids"),
        ({"block_size": "16"}, "block_size"),
        ({}, "no safetensors files"),
    ],
)
def test_a_draft_that_does_not_fit_says_why(tmp_path: Path, change: dict, reason: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DRAFT | change))
    found = probe(tmp_path)
    assert not found.usable
    assert reason in found.reason


def test_a_missing_directory_or_config_is_no_draft(tmp_path: Path) -> None:
    assert "no such directory" in probe(tmp_path / "nowhere").reason
    assert "config.json" in probe(tmp_path).reason
