import contextlib
import json
import math
import os
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from mach.errors import CheckpointError, CheckpointNotFoundError, ConfigError, UnknownArchitectureError
from mach.io.arch_registry import REGISTRY
from mach.io.inspection import inspect_checkpoint
from mach.io.sidecar_layout import SidecarLayoutError
from mach_decode import memory_refusal, store_opening
from mach_decode.engine import EngineConfig
from mach_decode.errors import DecodeError, ResidencyError, TokenizerError
from mach_decode.loaded_model import LoadedModel
from mach_decode.loader import load, load_moe, load_swapped
from mach_decode.memory_flags import NO_BUDGETS, MemoryFlags
from mach_decode.store_opening import choose_residency
from mach_decode.unswapped_loader import load_unswapped
from mach_store.bank_cache import BankCache
from mach_store.cpu_kernels import stock_kernels
from mach_store.disk_switch_glu import DiskSwitchGLU
from mach_store.errors import (
    MemoryBudgetError,
    NativeReaderMissingError,
    SettingError,
)
from mach_store.gather_switch_glu import GatherSwitchGLU
from mach_store.machine_memory import AvailableMemory
from mach_store.resident_cache import ResidentStackedExpertCache
from mach_store.settings import StoreSettings


def open_experts() -> list[str]:
    """Expert files that this process has open."""
    if sys.platform != "linux":
        return []
    names = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            names.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [name for name in names if "/layer_" in name or "/model-experts" in name]


@pytest.fixture
def refused():
    """A function (error, message, arguments of load_moe) that also looks for descriptors left open."""

    def check(error: type[Exception], match: str, *args, **options) -> Exception:
        before = open_experts()
        with pytest.raises(error, match=match) as caught:
            load_moe(*args, **options)
        assert open_experts() == before
        # Only a refusal for want of memory has more than a line: the arithmetic.
        assert "\n" not in str(caught.value) or error is MemoryBudgetError
        return caught.value

    return check


def change_config(directory, **changes) -> str:
    path = directory / "config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))
    return str(directory)


def change_layout(directory, change) -> str:
    path = directory / "expert_sidecar" / "layout.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))
    return str(directory)


def test_load_moe_gives_model_tokenizer_store_and_cache(sliced) -> None:
    model, tokenizer, store, cache = load_moe(str(sliced))
    assert isinstance(store, BankCache)
    assert isinstance(model.model.layers[0].mlp.switch_mlp, GatherSwitchGLU)
    assert tokenizer.encode("a")
    assert len(cache.make()) == 3
    store.close()


def test_a_stacked_checkpoint_can_be_resident(stacked) -> None:
    model, _, store, _ = load_moe(str(stacked), "qwen3_moe", expert_residency="stacked")
    assert isinstance(store, ResidentStackedExpertCache)
    assert mx.isfinite(model(mx.array([[1, 2]]))).all()


def test_load_gives_a_whole_model_as_mlx_lm_loads_it(stacked) -> None:
    model, tokenizer = load(str(stacked))
    assert hasattr(model.model.layers[0].mlp.switch_mlp.up_proj, "scales")
    assert tokenizer.encode("a")


def test_the_disk_loop_is_chosen_by_its_variable(sliced, monkeypatch) -> None:
    monkeypatch.setenv("LME_USE_GATHER_DISPATCH", "0")
    model, _, store, _ = load_moe(str(sliced))
    assert isinstance(model.model.layers[0].mlp.switch_mlp, DiskSwitchGLU)
    store.close()


def test_another_architecture_than_expected_is_refused(sliced, refused) -> None:
    refused(DecodeError, "is qwen3_moe, not gpt_oss", str(sliced), "gpt_oss")


def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path, refused) -> None:
    refused(CheckpointNotFoundError, "neither a directory here nor", "no-such-model")
    refused(CheckpointNotFoundError, "is empty", str(tmp_path))
    (tmp_path / "notes.txt").write_text("")
    refused(CheckpointNotFoundError, "no config.json", str(tmp_path))
    refused(CheckpointNotFoundError, "a file", str(tmp_path / "notes.txt"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(model_type=...), ConfigError, "model_type is missing"),
        (dict(model_type="llama"), UnknownArchitectureError, "'llama' is not supported; mach-archs"),
        (dict(num_experts="many"), ConfigError, "num_experts is a JSON string"),
        (dict(num_experts_per_tok=9), ConfigError, "num_experts_per_tok is 9, outside 1 to 8"),
        (dict(max_position_embeddings="long"), ConfigError, "max_position_embeddings is a JSON string"),
        (dict(vocab_size=...), ConfigError, "vocab_size is missing"),
        (dict(vocab_size=-1), ConfigError, "vocab_size is -1"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(
    sliced, copy_checkpoint, refused, changes, error, message
) -> None:
    refused(error, message, change_config(copy_checkpoint(sliced), **changes))


def test_a_config_that_contradicts_the_weights_is_refused(sliced, copy_checkpoint) -> None:
    directory = change_config(copy_checkpoint(sliced), head_dim=64)
    before = open_experts()
    with pytest.raises(ResidencyError, match=r"k_norm.weight' is \[32\], but config.json makes it \[64\]"):
        load_moe(directory)
    assert open_experts() == before


def test_fp8_weights_beside_a_sidecar_are_refused_with_the_command_that_unpacks_them(
    sliced, copy_checkpoint, refused
) -> None:
    directory = copy_checkpoint(sliced)
    config = json.loads((directory / "config.json").read_text())
    del config["quantization"]
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (directory / "config.json").write_text(json.dumps(config))
    refused(ResidencyError, "--streaming: weights quantised .*mach-prune --source DIR", str(directory))


def test_a_known_architecture_without_a_model_is_refused(sliced, refused, monkeypatch) -> None:
    monkeypatch.setitem(REGISTRY, "qwen3_moe", REGISTRY["qwen3_moe"]._replace(implementation=None))
    refused(ResidencyError, "this version of mach has no model for qwen3_moe", str(sliced))


def test_a_checkpoint_that_only_says_it_is_deepseek_v4_is_refused(sliced, copy_checkpoint, refused) -> None:
    directory = copy_checkpoint(sliced)
    change_config(directory, model_type="deepseek_v4", n_routed_experts=8, intermediate_size=None)
    change_layout(directory, lambda document: document.update(model_type="deepseek_v4"))
    refused(ConfigError, "compress_ratios is missing", str(directory))


def test_a_missing_or_broken_tokenizer_is_refused(sliced, copy_checkpoint, refused) -> None:
    directory = copy_checkpoint(sliced)
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="the tokenizer cannot be loaded"):
        load_moe(str(directory))
    (directory / "tokenizer.json").unlink()
    refused(CheckpointError, "no tokenizer", str(directory))
    (directory / "vocab.json").write_text("{}")
    refused(TokenizerError, "no tokenizer.json or tokenizer.model", str(directory))


def test_a_stacked_checkpoint_streams_lazy_slices_and_says_so(stacked, capsys) -> None:
    _, _, store, _ = load_moe(str(stacked))
    assert isinstance(store, BankCache)
    store.close()
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "lazy per-expert slices" in line
    assert "not resident stacked banks" in line
    assert "--no-streaming" in line


def test_a_sliced_checkpoint_cannot_be_resident_and_is_told_what_to_do(sliced, refused) -> None:
    refused(
        ResidencyError,
        "--no-streaming: needs the axis-0 stacked layout, found sliced; --streaming works",
        str(sliced),
        expert_residency="stacked",
    )


def test_a_budget_for_resident_experts_is_not_silently_ignored(stacked, refused) -> None:
    refused(
        ResidencyError, "--expert-cache-gb", str(stacked), expert_residency="stacked", expert_cache_gb=1.0
    )


def test_a_residency_that_does_not_exist_is_refused(sliced, refused) -> None:
    refused(
        ResidencyError,
        "must be one of streaming, stacked, bf16_streaming",
        str(sliced),
        expert_residency="both",
    )


def test_raw_experts_without_a_sidecar_need_an_export(sliced, copy_checkpoint, refused) -> None:
    directory = copy_checkpoint(sliced)
    os.rename(directory / "expert_sidecar", directory / "elsewhere")
    refused(
        ResidencyError, "--streaming: no routed-expert tensors, .*put the missing files back", str(directory)
    )
    projections = {"gate_proj": (64, 64), "up_proj": (64, 64), "down_proj": (64, 64)}
    mx.save_safetensors(
        str(directory / "model-experts.safetensors"),
        {
            f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight": mx.zeros(shape, mx.bfloat16)
            for layer in range(3)
            for expert in range(8)
            for name, shape in projections.items()
        },
    )
    config = json.loads((directory / "config.json").read_text())
    packing = config.pop("quantization")
    (directory / "config.json").write_text(json.dumps(config))
    # Packed weights beside plain experts are of no use to mach-prune, and then it is not named.
    refused(ResidencyError, "--streaming: .*is none of this model's", str(directory))
    tensors = dict(mx.load(str(directory / "model.safetensors")))
    for scales in [name for name in tensors if name.endswith(".scales")]:
        module = scales.removesuffix(".scales")
        parts = [tensors.pop(f"{module}.{part}") for part in ("weight", "scales", "biases")]
        wide = mx.dequantize(*parts, group_size=packing["group_size"], bits=packing["bits"])
        tensors[f"{module}.weight"] = wide
    mx.save_safetensors(str(directory / "model.safetensors"), tensors)
    refused(ResidencyError, "--streaming: per_expert .*mach-prune --source", str(directory))
    refused(
        ResidencyError, "found per_expert: slice .*mach-prune", str(directory), expert_residency="stacked"
    )


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, -math.inf, 1e6, 1e300])
def test_an_absurd_budget_is_refused(sliced, refused, value) -> None:
    refused(ResidencyError, "--expert-cache-gb .*positive number", str(sliced), expert_cache_gb=value)


def test_a_budget_of_less_than_one_tokens_experts_is_refused(sliced, refused, gigabytes) -> None:
    error = refused(
        MemoryBudgetError,
        "one token needs 2 experts in each of 3 layers.*raise --expert-cache-gb",
        str(sliced),
        expert_cache_gb=gigabytes(sliced, 5),
    )
    assert error.needed > error.available > 0


def test_the_budget_that_a_refusal_names_is_enough(sliced, gigabytes) -> None:
    with pytest.raises(MemoryBudgetError) as caught:
        load_moe(str(sliced), expert_cache_gb=1e-9)
    named = float(str(caught.value).rpartition("at least ")[2])
    _, _, store, _ = load_moe(str(sliced), expert_cache_gb=named)
    store.close()


def test_what_does_not_fit_the_machine_is_refused_with_advice_that_fits(
    sliced, stacked, refused, monkeypatch
) -> None:
    for module in (store_opening, memory_refusal):
        monkeypatch.setattr(module, "available_memory", lambda: AvailableMemory(100 << 20, "MemAvailable"))
    refused(MemoryBudgetError, "lower --expert-cache-gb", str(sliced), expert_cache_gb=1.0)
    refused(MemoryBudgetError, "use --streaming", str(stacked), expert_residency="stacked")
    error = refused(MemoryBudgetError, "leave no room for one token's experts: free some memory", str(sliced))
    first, *table = str(error).splitlines()
    assert "0.10 GB (MemAvailable)" in first
    assert [line.split("  ")[1] for line in table][-2:] == ["together", "limit"]


def test_a_budget_larger_than_all_experts_allocates_no_more_than_them(sliced) -> None:
    _, _, store, _ = load_moe(str(sliced), expert_cache_gb=1.0)
    assert store.whole
    assert store.slots == 24
    store.close()


@pytest.mark.parametrize(
    ("variable", "value"),
    [("LME_READ_THREADS", "none"), ("LME_SCRATCH_EXPERTS", "0"), ("LME_FALLBACK_POLICY", "maybe")],
)
def test_a_bad_environment_value_names_its_variable(sliced, refused, monkeypatch, variable, value) -> None:
    monkeypatch.setenv(variable, value)
    refused(SettingError, variable, str(sliced))


def test_without_the_native_reader_loading_fails_fast_or_is_diagnostic(
    sliced, refused, monkeypatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, "lme_mlx_pread_ext", None)
    refused(NativeReaderMissingError, "install mach-native", str(sliced))
    monkeypatch.setenv("LME_FALLBACK_POLICY", "diagnostic-python")
    _, _, store, _ = load_moe(str(sliced))
    assert store.stats()["native_reader"] is False
    store.close()


def test_direct_reads_of_a_stacked_checkpoint_are_refused(stacked, refused, monkeypatch) -> None:
    monkeypatch.setenv("LME_DIRECT_IO", "1")
    refused(ResidencyError, "LME_DIRECT_IO=1 needs the aligned records of a sidecar", str(stacked))


def drop_layer(document) -> None:
    del document["layers"][1]


def drop_expert(document) -> None:
    for layer in document["layers"]:
        layer["num_experts"] = 7
        layer["checksums"].pop()


def other_family(document) -> None:
    document["model_type"] = "gpt_oss"


def other_bits(document) -> None:
    # 8-bit words of half as many inputs have the size of 4-bit words of them all.
    for layer in document["layers"]:
        layer["quantization"]["up_proj"]["bits"] = 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_layer, "other layers than config.json, first layer 1"),
        (other_family, "model_type 'gpt_oss' differs"),
        (other_bits, r"layer 0: up_proj.weight is \[64, 8\], but config.json makes it \[64, 16\]"),
    ],
)
def test_a_sidecar_of_another_model_is_refused_before_anything_is_computed(
    sliced, copy_checkpoint, refused, change, message
) -> None:
    refused(SidecarLayoutError, message, change_layout(copy_checkpoint(sliced), change))


def test_a_sidecar_with_fewer_experts_than_the_router_knows_is_refused(
    sliced, copy_checkpoint, refused
) -> None:
    directory = copy_checkpoint(sliced)
    change_layout(directory, drop_expert)
    for path in (directory / "expert_sidecar").glob("layer_*.bin"):
        os.truncate(path, path.stat().st_size // 8 * 7)
    refused(SidecarLayoutError, "layer 0 has 7 experts, not config.json's 8", str(directory))


def test_the_residency_of_who_has_no_wish_follows_the_checkpoint_and_the_memory(
    sliced, stacked, monkeypatch
) -> None:
    def chosen(directory: Path, budget: float | None = None) -> str:
        loaded = load_swapped(
            str(directory), expert_residency=None, memory=MemoryFlags(expert_cache_gb=budget)
        )
        loaded.store.close()
        return loaded.store.residency

    assert chosen(sliced) == "streaming"
    assert chosen(stacked) == "stacked"
    assert chosen(stacked, 0.001) == "streaming"
    other = inspect_checkpoint(stacked).other_bytes
    monkeypatch.setattr(store_opening, "available_memory", lambda: AvailableMemory(other, "MemAvailable"))
    inspection = inspect_checkpoint(stacked)
    assert (
        choose_residency(None, inspection, StoreSettings(), NO_BUDGETS, stock_kernels("test")) == "streaming"
    )


def test_an_engine_config_knows_no_other_fields() -> None:
    with pytest.raises(TypeError):
        EngineConfig(checkpoint="x", expert_cache=1)


def test_direct_reads_that_cannot_be_had_are_refused_wherever_they_are_asked_for(
    sliced, stacked, refused, monkeypatch
) -> None:
    monkeypatch.setenv("LME_DIRECT_IO", "1")
    refused(ResidencyError, "LME_DIRECT_IO=1 needs the aligned records of a sidecar", str(stacked))
    refused(ResidencyError, "leave it out with --no-streaming", str(stacked), expert_residency="stacked")
    with pytest.raises(ResidencyError, match="LME_DIRECT_IO=1 goes with --streaming"):
        load_unswapped(str(stacked))


def test_how_experts_are_read_is_chosen_when_nobody_says(sliced, stacked, gigabytes, monkeypatch) -> None:
    flags = MemoryFlags(expert_cache_gb=gigabytes(sliced, 9))

    def loaded(directory: Path) -> LoadedModel:
        made = load_swapped(str(directory), expert_residency="streaming", memory=flags)
        made.store.close()
        return made

    assert loaded(sliced).direct.code == "page-cache-holds-all"
    assert loaded(stacked).direct.code == "slices"
    monkeypatch.setattr(store_opening, "available_memory", lambda: AvailableMemory(0, "MemAvailable"))
    chosen = loaded(sliced)
    assert chosen.direct.asked == "auto"
    assert chosen.direct.code in ("measured", "no-direct-reads")
    assert chosen.reader is not None
    assert chosen.reader.direct is chosen.direct.direct
    monkeypatch.setenv("LME_DIRECT_IO", "0")
    assert loaded(sliced).direct == (False, "0", "asked", "LME_DIRECT_IO=0", None, None)
