"""`mach check` says of a checkpoint what loading it then does, for every family, layout and quantisation."""

import json
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mach.errors import MachError
from mach.io.arch_registry import REGISTRY, adapter_for
from mach.io.checkpoint_path import resolve_checkpoint
from mach.io.config_file import ConfigFields, read_config
from mach.io.inspection import ExpertTensorNames, inspect_checkpoint
from mach.io.model_tensors import model_tensors
from mach.io.sidecar_layout import read_layout
from mach.preflight.check_report import CheckOptions, check_report
from mach.preflight.gates import unswapped_gate
from mach.preflight.kv_cache_bytes import kv_cache_bytes
from mach.preflight.machine import Machine, this_machine
from mach.preflight.memory import estimate_memory
from mach.preflight.memory_plan import MemoryBudgets
from mach.settings import CoreSettings
from mach_decode.loader import load_swapped
from mach_decode.memory_flags import MemoryFlags
from mach_decode.unswapped_loader import load_unswapped
from mach_server import serve_options
from mach_store.engine_checkpoint import write_stacked_checkpoint
from mach_store.errors import SidecarExportError
from mach_store.model_builder import family_classes
from mach_store.sidecar.export import export_sidecar
from mach_store.synthetic_checkpoint import write_synthetic_checkpoint

CONFIGS = Path(__file__).parent / "configs"
NOT_SERVED = {
    "specdec": ["--draft-dir", "draft"],
    "continuous_batching": ["--continuous-batching"],
    "turboquant_kv": ["--turboquant-kv"],
    "prefix_kv_reuse": ["--prefix-cache"],
}
"""Paths that this version does not have → how a user would ask mach-serve for them."""
RESIDENCIES = {
    "expert_streaming": "streaming",
    "resident_stacked": "stacked",
    "bf16_streaming": "bf16_streaming",
    "unswapped": "unswapped",
}
FAMILIES = ("qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4", "deepseek_v4")
SLICED_ALONE = ("deepseek_v4",)
"""Families that load from the engine layout and no other."""
PACKINGS = {
    "bf16": None,
    "affine 4-bit": {"mode": "affine", "bits": 4, "group_size": 64},
    "affine 8-bit": {"mode": "affine", "bits": 8, "group_size": 32},
    "affine 2-bit": {"mode": "affine", "bits": 2, "group_size": 64},
    "affine 6-bit": {"mode": "affine", "bits": 6, "group_size": 64},
    "mxfp4": {"mode": "mxfp4", "bits": 4, "group_size": 32},
    "mxfp8": {"mode": "mxfp8", "bits": 8, "group_size": 32},
    "nvfp4": {"mode": "nvfp4", "bits": 4, "group_size": 16},
}


def outcomes(directory: Path, budget: float | None = None, **budgets: float) -> dict[str, bool]:
    """Whether each residency loads; `unswapped` is mlx-lm's own model, with `--backend openai`."""
    result = {}
    for path, residency in RESIDENCIES.items():
        flags = MemoryFlags(expert_cache_gb=budget, **budgets)
        if residency not in ("streaming", "bf16_streaming"):
            flags = replace(flags, expert_cache_gb=None, prefill_scratch_gb=None)
        try:
            if residency == "unswapped":
                loaded = load_unswapped(str(directory), memory=flags)
            else:
                loaded = load_swapped(str(directory), expert_residency=residency, memory=flags)
        except MachError as error:
            print(path, error)
            result[path] = False
        else:
            loaded.store.close()
            result[path] = True
    return result


def check(directory: Path, tmp_path: Path, budget: float | None = None, **budgets: float) -> dict:
    """What `mach check --json` prints."""
    settings = CoreSettings(cache_root=str(tmp_path / "cache"))
    options = CheckOptions(expert_cache_gb=budget, local_only=True, **budgets)
    return check_report(str(directory), options, settings)


def agree(directory: Path, tmp_path: Path, budget: float | None = None, **budgets: float) -> dict:
    """The report, after comparing it with what loading and serving do."""
    report = check(directory, tmp_path, budget, **budgets)
    said = {row["path"]: row["status"] == "ok" for row in report["paths"]}
    done = outcomes(directory, budget, **budgets)
    unswapped = done.pop("unswapped")
    assert {path: said[path] for path in done} == done, report["paths"]
    assert not any(said[path] for path in NOT_SERVED), "the server has no flag for these"
    assert report["supported"] == (done["expert_streaming"] or done["resident_stacked"])
    if said["openai_http"] or any(done.values()):
        assert said["openai_http"] and (any(done.values()) or unswapped)
    elif unswapped:  # what mach would compute otherwise, mlx-lm computes as it can
        inspection = inspect_checkpoint(directory)
        assert unswapped_gate(inspection.adapter, inspection).status == "unknown"
    if report["supported"]:
        words = report["serve_command"].split()
        assert words[0] == "mach-serve"
        serve_options.parse(words[1:])
        assert done["expert_streaming" if "--streaming" in words else "resident_stacked"]
    return report


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_check_agrees_with_loading(family: str, packing: str, tmp_path: Path) -> None:
    config = json.loads((CONFIGS / f"{family}.json").read_text())
    if PACKINGS[packing] is not None:
        config["quantization"] = PACKINGS[packing]
    sliced, stacked = tmp_path / "sliced", tmp_path / "stacked"
    write_synthetic_checkpoint(sliced, config, tokenizer_from=resolve_checkpoint("mach-pico"))
    report = agree(sliced, tmp_path)
    assert (report["layout"]["kind"], report["supported"]) == ("sliced", True)
    write_stacked_checkpoint(sliced, stacked)
    report = agree(stacked, tmp_path)
    assert (report["layout"]["kind"], report["supported"]) == ("stacked", family not in SLICED_ALONE)
    agree(stacked, tmp_path, budget=1e-9)
    agree(sliced, tmp_path, budget=1e5)
    assert not agree(stacked, tmp_path, memory_gb=0.5)["supported"]
    agree(stacked, tmp_path, memory_gb=0.9, kv_cache_gb=0.05)
    agree(sliced, tmp_path, budget=0.001, kv_cache_gb=1e-6)
    agree(sliced, tmp_path, memory_gb=0.6, prefill_scratch_gb=1e-6)
    layer = next((sliced / "expert_sidecar").glob("layer_*.bin"))
    layer.write_bytes(layer.read_bytes()[:-1])
    report = agree(sliced, tmp_path)
    assert not report["supported"]
    (sliced / "expert_sidecar" / "layout.json").unlink()
    assert inspect_checkpoint(sliced).layout == "unknown"
    agree(sliced, tmp_path)


def raw_checkpoint(directory: Path, config: dict, fused: bool) -> None:
    """A checkpoint as published: bfloat16 experts one by one, or with gate and up in one tensor."""
    fields = ConfigFields(config, "config.json")
    adapter = adapter_for(fields)
    shape = adapter.moe_shape(fields)
    hidden, width = shape.hidden_size, shape.expert_width
    others = model_tensors(adapter.model_type, fields, adapter.text_config(fields), shape)
    tensors = {
        name: mx.zeros(extents, mx.int64 if name.endswith("tid2eid") else mx.bfloat16)
        for name, extents in others
    }
    extents = {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}
    forms = {form.layout: form for form in reversed(adapter.names.raw)}
    for layer in shape.moe_layers:
        if fused:
            block = forms["fused"].blocks[0].format(layer=layer)
            both = (shape.num_experts, 2 * width, hidden)
            tensors[f"{block}.gate_up_proj"] = mx.zeros(both, mx.bfloat16)
            tensors[f"{block}.down_proj"] = mx.zeros((shape.num_experts, hidden, width), mx.bfloat16)
            continue
        for expert in range(shape.num_experts):
            path = forms["per_expert"].blocks[0].format(layer=layer, expert=expert)
            for projection in forms["per_expert"].projections:
                tensors[f"{path}.{projection.name}.weight"] = mx.zeros(
                    extents[projection.holds[0]], mx.bfloat16
                )
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(directory / "model.safetensors"), tensors)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(resolve_checkpoint("mach-pico") / name, directory / name)


@pytest.mark.parametrize("fused", [False, True], ids=["per expert", "fused"])
@pytest.mark.parametrize("family", FAMILIES)
def test_check_agrees_with_loading_raw_checkpoints(family: str, fused: bool, tmp_path: Path) -> None:
    config = json.loads((CONFIGS / f"{family}.json").read_text())
    raw_checkpoint(tmp_path / "raw", config, fused)
    report = agree(tmp_path / "raw", tmp_path)
    assert (report["layout"]["kind"], report["supported"]) == ("fused" if fused else "per_expert", False)
    streaming = next(row for row in report["paths"] if row["path"] == "expert_streaming")
    if not fused and family == "gpt_oss":  # whose experts have biases
        assert streaming["status"] == "blocked"
        with pytest.raises(SidecarExportError, match="has no bias"):
            export_sidecar(tmp_path / "raw", tmp_path / "raw" / "expert_sidecar", bits=4)
    elif not fused:
        assert streaming["status"] == "needs_artifact"
        export_sidecar(tmp_path / "raw", tmp_path / "raw" / "expert_sidecar", bits=4)
        assert agree(tmp_path / "raw", tmp_path)["supported"], "an exported sidecar makes it servable"


def test_check_agrees_with_loading_deepseek_v4_in_its_published_names(tmp_path: Path) -> None:
    config = json.loads((CONFIGS / "deepseek_v4.json").read_text())
    raw_checkpoint(tmp_path / "raw", config, fused=False)
    path = str(tmp_path / "raw" / "model.safetensors")
    renamed = {"self_attn.q_a_proj": "attn.wq_a", "lm_head": "head", "model.layers": "layers"}
    tensors = {"mtp.0.norm.weight": mx.zeros((128,)), "mtp.0.ffn.experts.0.w1.weight": mx.zeros((64, 128))}
    for name, array in mx.load(path).items():
        for own, published in renamed.items():
            name = name.replace(own, published)
        tensors[name] = array
    mx.eval(tensors)
    mx.save_safetensors(path, tensors)
    export_sidecar(tmp_path / "raw", tmp_path / "raw" / "expert_sidecar", bits=4)
    assert agree(tmp_path / "raw", tmp_path)["supported"]
    tensors["layers.0.attn.wq_a.scale"] = mx.zeros((1, 1))
    mx.save_safetensors(path, tensors)
    assert not agree(tmp_path / "raw", tmp_path)["supported"], "float8 blocks have to be unpacked before"


@pytest.mark.parametrize("tokens", [1, 3, 15, 16, 17, 127, 128, 300])
def test_the_compressed_cache_is_as_large_as_check_says(tokens: int) -> None:
    config = json.loads((CONFIGS / "deepseek_v4.json").read_text())
    adapter = REGISTRY["deepseek_v4"]
    module = import_module(adapter.implementation)
    model = module.Model(module.ModelArgs.from_dict(config))
    cache = model.make_cache()
    model(mx.zeros((1, tokens), mx.int32), cache=cache)
    said = kv_cache_bytes(adapter, ConfigFields(config, "config.json"), tokens, 4)
    assert said.total == sum(layer.nbytes for layer in cache)


def change_config(directory: Path, **changes: object) -> None:
    """Set or (with None) remove fields of the language model's config."""
    config = json.loads((directory / "config.json").read_text())
    text = config.get("text_config", config)
    for name, value in changes.items():
        if value is None:
            del text[name]
        else:
            text[name] = value
    (directory / "config.json").write_text(json.dumps(config))


def change_tensors(directory: Path, *lost: str, **added: mx.array) -> None:
    """Drop the tensors with one of `lost` in their names, add others."""
    path = str(directory / "model.safetensors")
    tensors = dict(mx.load(path))
    mx.eval(list(tensors.values()))
    kept = {name: array for name, array in tensors.items() if not any(part in name for part in lost)}
    assert not lost or len(kept) < len(tensors)
    mx.save_safetensors(path, kept | added)


def stale_shard(directory: Path) -> None:
    """An index, and a shard that it does not name."""
    names = [name for name in mx.load(str(directory / "model.safetensors"))]
    index = {"weight_map": dict.fromkeys(names, "model.safetensors")}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copyfile(directory / "model.safetensors", directory / "model-2.safetensors")


ODDITIES = {
    "no tokenizer": lambda d: (d / "tokenizer.json").unlink(),
    "a tokenizer that cannot be read": lambda d: (d / "tokenizer.json").rename(d / "vocab.json"),
    "a page for a tokenizer": lambda d: (d / "tokenizer.json").write_text("<html>"),
    "a broken tokenizer_config": lambda d: (d / "tokenizer_config.json").write_text("["),
    "no vocabulary": lambda d: change_config(d, vocab_size=None),
    "another vocabulary": lambda d: change_config(d, vocab_size=512),
    "more heads": lambda d: change_config(d, num_attention_heads=8),
    "no attention": lambda d: change_tensors(d, "self_attn.q_"),
    "no scales": lambda d: change_tensors(d, "q_proj.scales", "q_a_proj.scales"),
    "no norm": lambda d: change_tensors(d, "model.norm"),
    "a tensor too many": lambda d: change_tensors(d, surplus=mx.zeros((2,))),
    "weights of another name": lambda d: (d / "model.safetensors").rename(d / "weights.safetensors"),
    "a stale shard": stale_shard,
    "code of its own": lambda d: change_config(d, model_file="model.py"),
}


@pytest.mark.parametrize("oddity", ODDITIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_check_agrees_with_loading_odd_checkpoints(family: str, oddity: str, tmp_path: Path) -> None:
    config = json.loads((CONFIGS / f"{family}.json").read_text())
    config["quantization"] = PACKINGS["affine 4-bit"]
    write_synthetic_checkpoint(tmp_path / "odd", config, tokenizer_from=resolve_checkpoint("mach-pico"))
    write_stacked_checkpoint(tmp_path / "odd", tmp_path / "stacked")
    for directory in (tmp_path / "odd", tmp_path / "stacked"):
        ODDITIES[oddity](directory)
        try:
            agree(directory, tmp_path)
        except MachError as error:
            print(error)
            assert not any(outcomes(directory).values())


@pytest.mark.parametrize("name", ["rope_theta", "norm_topk_prob", "decoder_sparse_step", "rms_norm_eps"])
def test_check_asks_for_the_fields_that_loading_needs(name: str, tmp_path: Path) -> None:
    config = json.loads((CONFIGS / "qwen3_moe.json").read_text())
    directory = tmp_path / "checkpoint"
    write_synthetic_checkpoint(directory, config, tokenizer_from=resolve_checkpoint("mach-pico"))
    change_config(directory, **{name: None})
    with pytest.raises(MachError, match=f"config.json: {name} is missing"):
        check(directory, tmp_path)
    assert not any(outcomes(directory).values())


@pytest.mark.parametrize("packing", ["bf16", "affine 4-bit", "mxfp4"])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in SLICED_ALONE])
def test_check_counts_the_bytes_that_bf16_streaming_takes(family: str, packing: str, tmp_path: Path) -> None:
    config = json.loads((CONFIGS / f"{family}.json").read_text())
    if PACKINGS[packing] is not None:
        config["quantization"] = PACKINGS[packing]
    write_synthetic_checkpoint(tmp_path / "s", config, tokenizer_from=resolve_checkpoint("mach-pico"))
    write_stacked_checkpoint(tmp_path / "s", tmp_path / "stacked")
    inspection = inspect_checkpoint(tmp_path / "stacked")
    machine = Machine("cpu", 64 << 30, 48 << 30, "test", kernels=True)
    said = estimate_memory(inspection, None, machine, context=256)
    loaded = load_swapped(str(tmp_path / "stacked"), expert_residency="bf16_streaming")
    assert said.float_bank_bytes == loaded.store.nbytes
    assert said.bf16_streaming.parts.get("arena", 0) == loaded.store.scratch_bytes
    loaded.store.close()
    # And a smaller one, which needs the arena whatever computes.
    half = said.float_bank_bytes // 2
    said = estimate_memory(inspection, None, machine, context=256, budgets=MemoryBudgets(expert_cache=half))
    loaded = load_swapped(
        str(tmp_path / "stacked"),
        expert_residency="bf16_streaming",
        memory=MemoryFlags(expert_cache_gb=(half + 0.5) / 1e9),
    )
    assert said.float_bank_bytes == loaded.store.nbytes
    assert said.bf16_streaming.parts["arena"] == loaded.store.scratch_bytes > 0
    loaded.store.close()


@pytest.mark.parametrize("kernels", [True, False], ids=["native kernels", "stock"])
@pytest.mark.parametrize("packing", ["bf16", "affine 4-bit", "mxfp4", "affine 3-bit"])
@pytest.mark.parametrize("layout", ["sidecar", "stacked"])
def test_check_counts_the_bytes_that_experts_take(
    layout: str, packing: str, kernels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LME_CPU_KERNELS", str(int(kernels)))
    config = json.loads((CONFIGS / "qwen3_moe.json").read_text())
    config["quantization"] = {
        "bf16": None,
        "affine 4-bit": {"mode": "affine", "bits": 4, "group_size": 32},
        "affine 3-bit": {"mode": "affine", "bits": 3, "group_size": 32},
        "mxfp4": {"mode": "mxfp4", "bits": 4, "group_size": 32},
    }[packing]
    if config["quantization"] is None:
        del config["quantization"]
    directory = tmp_path / "sidecar"
    write_synthetic_checkpoint(directory, config, tokenizer_from=resolve_checkpoint("mach-pico"))
    if layout == "stacked":
        write_stacked_checkpoint(directory, tmp_path / "stacked")
        directory = tmp_path / "stacked"
    inspection = inspect_checkpoint(directory)
    records = None if inspection.sidecar_directory is None else read_layout(inspection.sidecar_directory)
    here = this_machine()
    assert here.kernels == kernels
    machine = here._replace(total_bytes=64 << 30, available_bytes=48 << 30)
    said = estimate_memory(inspection, records, machine, context=256)
    streaming = load_swapped(str(directory), expert_residency="streaming")
    assert said.bank_bytes == said.experts.total_slots == streaming.store.nbytes
    streaming.store.close()
    half = said.bank_bytes // 2
    said = estimate_memory(inspection, records, machine, context=16, budgets=MemoryBudgets(expert_cache=half))
    streaming = load_swapped(
        str(directory), expert_residency="streaming", memory=MemoryFlags(expert_cache_gb=(half + 0.5) / 1e9)
    )
    assert said.experts.scratch(streaming.store.scratch_experts) == streaming.store.scratch_bytes
    assert said.bank_bytes == streaming.store.nbytes
    streaming.store.close()
    if layout == "stacked":
        resident = load_swapped(str(directory), expert_residency="stacked")
        assert said.resident.parts["all experts"] == resident.store.nbytes


def test_check_and_loading_understand_the_spelling_of_transformers_5(tmp_path: Path) -> None:
    config = json.loads((CONFIGS / "qwen3_moe.json").read_text())
    directory = tmp_path / "checkpoint"
    write_synthetic_checkpoint(directory, config, tokenizer_from=resolve_checkpoint("mach-pico"))
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    removed = dict.fromkeys(("num_experts", "head_dim", "rope_theta"))
    change_config(directory, num_local_experts=config["num_experts"], rope_parameters=rope, **removed)
    assert agree(directory, tmp_path)["supported"]


UNSUPPORTED = {
    "qwen3_moe": [
        {"attention_bias": True},
        {"hidden_act": "gelu"},
        {"use_sliding_window": True},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        {"partial_rotary_factor": 0.5},
    ],
    "qwen3_5_moe": [
        {"hidden_act": "gelu"},
        {"layer_types": ["full_attention"] * 4},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0}},
    ],
    "gpt_oss": [
        {"attention_bias": False},
        {"swiglu_limit": 10.0},
        {"swiglu_alpha": 1.0},
        {"tie_word_embeddings": True},
        {"layer_types": ["full_attention"] * 2},
    ],
    "gemma4": [
        {"attention_bias": True},
        {"hidden_activation": "silu"},
        {"use_bidirectional_attention": "all"},
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
                "full_attention": {"rope_type": "proportional", "rope_theta": 1e6},
            }
        },
    ],
}


@pytest.mark.parametrize(("family", "changes"), [(f, c) for f, found in UNSUPPORTED.items() for c in found])
def test_check_and_loading_refuse_what_would_be_computed_otherwise(
    family: str, changes: dict, tmp_path: Path
) -> None:
    config = json.loads((CONFIGS / f"{family}.json").read_text())
    directory = tmp_path / "checkpoint"
    write_synthetic_checkpoint(directory, config, tokenizer_from=resolve_checkpoint("mach-pico"))
    change_config(directory, **changes)
    report = agree(directory, tmp_path)
    assert not report["supported"]
    assert min(changes) in report["paths"][0]["reason"]


VARIANTS = {
    "qwen3_moe": [{}, {"tie_word_embeddings": True}, {"mlp_only_layers": [1]}, {"decoder_sparse_step": 2}],
    "qwen3_5_moe": [
        {},
        {"tie_word_embeddings": True, "attention_bias": True},
        {"full_attention_interval": 2, "linear_num_value_heads": 8, "head_dim": 64},
        {"layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"]},
        {"full_attention_interval": 1, "layer_types": ["full_attention"] * 3 + ["linear_attention"]},
    ],
    "gpt_oss": [{}, {"num_key_value_heads": 1}],
    "gemma4": [
        {},
        {"tie_word_embeddings": False, "attention_k_eq_v": False, "num_global_key_value_heads": None},
        {"num_kv_shared_layers": 2, "use_double_wide_mlp": True, "hidden_size_per_layer_input": 16},
        {"layer_types": None, "global_head_dim": None},
        {"per_layer_config": {"1": {"head_dim": 16}, "3": {"head_dim": 16}}, "attention_k_eq_v": False},
    ],
    "deepseek_v4": [
        {},
        {"tie_word_embeddings": True, "num_hash_layers": 0, "o_groups": 4, "hc_mult": 2},
        {
            "compress_ratios": None,
            "layer_types": ["compressed_sparse_attention", "heavily_compressed_attention"] * 2,
            "compress_rates": {"compressed_sparse_attention": 8, "heavily_compressed_attention": 16},
        },
    ],
}


@pytest.mark.parametrize(("family", "changes"), [(f, c) for f, found in VARIANTS.items() for c in found])
def test_the_tables_of_tensors_are_the_models(family: str, changes: dict, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((CONFIGS / f"{family}.json").read_text())
    change_config(tmp_path, **changes)
    config = read_config(tmp_path)
    adapter = adapter_for(config)
    text, shape = adapter.text_config(config), adapter.moe_shape(config)
    wanted = dict(model_tensors(family, config, text, shape))
    base, arguments, values = family_classes(adapter, config)
    model = base(arguments.from_dict(values))
    names = ExpertTensorNames(adapter)
    parameters = tree_flatten(model.parameters())
    assert wanted == {name: array.shape for name, array in parameters if names.place(name) is None}


@pytest.mark.parametrize("path", NOT_SERVED)
def test_the_server_refuses_what_check_calls_blocked(path: str) -> None:
    with pytest.raises(SystemExit) as refusal:
        serve_options.parse(["mach-pico", "--streaming", *NOT_SERVED[path]])
    assert refusal.value.code == 2
