import json

import pytest

from mach.io.arch_registry import REGISTRY
from mach.io.inspection import inspect_checkpoint
from mach_store.errors import StoreError
from mach_store.sidecar.verification import verify_sidecar
from mach_store.synthetic_checkpoint import write_synthetic_checkpoint


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(config, tmp_path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_synthetic_checkpoint(tmp_path / name, config(), seed=seed)
    for file in ("model.safetensors", "expert_sidecar/layer_01.bin", "expert_sidecar/layout.json"):
        a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert a == b
        assert a != c


def test_it_is_a_whole_sliced_checkpoint(config, tmp_path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "tokenizer.json").write_text("{}")
    write_synthetic_checkpoint(tmp_path / "a", config("gpt_oss", "mxfp4"), tokenizer_from=tmp_path / "from")
    assert inspect_checkpoint(tmp_path / "a").layout == "sliced"
    assert verify_sidecar(str(tmp_path / "a" / "expert_sidecar")) == []
    assert (tmp_path / "a" / "tokenizer.json").read_text() == "{}"
    assert json.loads((tmp_path / "a" / "config.json").read_text())["model_type"] == "gpt_oss"


def test_a_family_without_a_model_is_refused(config, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(REGISTRY, "qwen3_moe", REGISTRY["qwen3_moe"]._replace(implementation=None))
    with pytest.raises(StoreError, match="no model for this family yet"):
        write_synthetic_checkpoint(tmp_path / "a", config())
