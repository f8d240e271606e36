"""What mach-prune makes gives the tokens of what it was made from, or of the same experts sliced by hand."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mach.io.arch_registry import REGISTRY
from mach.io.checkpoint_path import resolve_checkpoint
from mach.preflight.check_report import CheckOptions, check_report
from mach.settings import CoreSettings
from mach_cli.prune_command import main as prune
from mach_decode.engine import Engine, EngineConfig
from mach_decode.request import GenerationRequest
from mach_store.engine_checkpoint import write_stacked_checkpoint
from mach_store.synthetic_checkpoint import write_synthetic_checkpoint

CONFIGS = Path(__file__).parent / "configs"
PROMPT = tuple(range(40, 75))
TOKENS = 10
FAMILIES = ("qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4")
PACKINGS = {
    "bf16": None,
    "affine 4-bit": {"mode": "affine", "bits": 4, "group_size": 64},
    "affine 8-bit": {"mode": "affine", "bits": 8, "group_size": 32},
    "mxfp4": {"mode": "mxfp4", "bits": 4, "group_size": 32},
    "nvfp4": {"mode": "nvfp4", "bits": 4, "group_size": 16},
}
COMPONENTS = ("weight", "scales", "biases")
ROUTERS = {
    "qwen3_moe": ("mlp.gate.",),
    "qwen3_5_moe": ("mlp.gate.",),
    "gpt_oss": ("mlp.router.",),
    "gemma4": ("router.proj.", "router.per_expert_scale"),
    "deepseek_v4": ("mlp.gate.weight", "mlp.gate.scales", "mlp.gate.e_score_correction_bias"),
}


class Sources:
    """Random checkpoints with mach-pico's tokenizer, each made once, in the engine's form and stacked."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def engine(self, family: str, packing: str) -> Path:
        directory = self._root / f"{family} {packing} engine"
        if not directory.exists():
            config = json.loads((CONFIGS / f"{family}.json").read_text())
            if PACKINGS[packing] is not None:
                config["quantization"] = PACKINGS[packing]
            pico = resolve_checkpoint("mach-pico")
            write_synthetic_checkpoint(directory, config, seed=5, tokenizer_from=pico)
        return directory

    def stacked(self, family: str, packing: str) -> Path:
        directory = self._root / f"{family} {packing}"
        if not directory.exists():
            write_stacked_checkpoint(self.engine(family, packing), directory)
        return directory


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture
def outcome() -> Iterator[Callable[[Path, str], tuple[list[int], np.ndarray]]]:
    """A function (checkpoint, residency) → greedy tokens, and the prompt's logits."""
    made: list[Engine] = []

    def run(directory: Path, residency: str) -> tuple[list[int], np.ndarray]:
        engine = Engine.load(EngineConfig(checkpoint=str(directory), expert_residency=residency))
        made.append(engine)
        engine.end_tokens = frozenset()
        request = GenerationRequest(prompt=PROMPT, max_tokens=TOKENS)
        tokens = [event.token for event in engine.generate(request) if event.token is not None]
        assert len(tokens) == TOKENS
        return tokens, np.array(engine.model(mx.array([PROMPT]), cache=None))

    yield run
    for engine in made:
        engine.close()


def same(one: tuple[list[int], np.ndarray], other: tuple[list[int], np.ndarray]) -> None:
    assert one[0] == other[0]
    assert np.array_equal(one[1], other[1])


def write_plan(path: Path, keep: dict[int, list[int]]) -> Path:
    path.write_text(
        json.dumps({"candidate_id": "a", "keep": {str(n): ids for n, ids in keep.items()}}) + "\n"
    )
    return path


def sliced_by_hand(source: Path, target: Path, family: str, keep: dict[int, list[int]]) -> Path:
    """The stacked checkpoint with fewer experts: every tensor that has an expert axis is indexed."""
    target.mkdir()
    adapter = REGISTRY[family]
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, target / path.name)
            continue
        arrays = {}
        for name, array in mx.load(str(path)).items():
            for layer, ids in keep.items():
                block = adapter.switch_block(layer) + "."
                root = block[: block.index(f"layers.{layer}.")] + f"layers.{layer}."
                if name.startswith((block, *(root + router for router in ROUTERS[family]))):
                    array = array[mx.array(sorted(ids))]
            arrays[name] = array
        mx.save_safetensors(str(target / path.name), arrays, {"format": "mlx"})
    config = json.loads((source / "config.json").read_text())
    fields = config.get("text_config", config)
    name = next(n for n in ("num_experts", "num_local_experts", "n_routed_experts") if n in fields)
    fields[name] = len(next(iter(keep.values())))
    (target / "config.json").write_text(json.dumps(config))
    return target


def says_ok(directory: Path, cache: Path) -> bool:
    report = check_report(str(directory), CheckOptions(local_only=True), CoreSettings(cache_root=str(cache)))
    return bool(report["supported"]) and report["layout"]["kind"] == "sliced"


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_every_expert_gives_the_sources_tokens(
    sources, tmp_path, outcome, compatibility, family, packing
) -> None:
    source, out = sources.stacked(family, packing), tmp_path / "out"
    assert prune(["--source", str(source), "--output", str(out)]) == 0
    assert says_ok(out, tmp_path)
    same(outcome(out, "streaming"), outcome(source, "stacked"))
    compatibility("mach-prune", f"{family}, stacked {packing}", "every expert", "= source")


@pytest.mark.parametrize("packing", ["bf16", "affine 4-bit", "mxfp4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_gives_the_tokens_of_the_experts_it_keeps(
    sources, tmp_path, outcome, compatibility, family, packing
) -> None:
    source, out = sources.stacked(family, packing), tmp_path / "out"
    config = json.loads((source / "config.json").read_text())
    layers = config.get("text_config", config)["num_hidden_layers"]
    keep = {layer: [(3 * layer + step) % 8 for step in (6, 1, 4, 3, 0)] for layer in range(layers)}
    plan = write_plan(tmp_path / "plan.jsonl", keep)
    assert prune(["--source", str(source), "--output", str(out), "--plan", str(plan)]) == 0
    assert says_ok(out, tmp_path)
    reference = sliced_by_hand(source, tmp_path / "reference", family, keep)
    pruned = outcome(out, "streaming")
    same(pruned, outcome(reference, "stacked"))
    assert not np.array_equal(pruned[1], outcome(source, "stacked")[1]), "the plan changes something"
    compatibility("mach-prune", f"{family}, stacked {packing}", "by a plan", "= sliced by hand")


@pytest.mark.parametrize("packing", ["bf16", "mxfp4"])
def test_deepseek_v4_which_has_no_resident_mode_keeps_its_tokens(
    sources, tmp_path, outcome, compatibility, packing
) -> None:
    source, out = sources.stacked("deepseek_v4", packing), tmp_path / "out"
    assert prune(["--source", str(source), "--output", str(out)]) == 0
    assert says_ok(out, tmp_path)
    same(outcome(out, "streaming"), outcome(sources.engine("deepseek_v4", packing), "streaming"))
    compatibility("mach-prune", f"deepseek_v4, stacked {packing}", "every expert", "= source")


def test_a_plan_that_spares_a_routing_tables_experts_gives_the_tokens_of_those_it_keeps(
    sources, tmp_path, outcome
) -> None:
    source = Path(shutil.copytree(sources.stacked("deepseek_v4", "mxfp4"), tmp_path / "source"))
    name, path = "model.layers.0.mlp.gate.tid2eid", str(source / "model.safetensors")
    arrays = dict(mx.load(path))
    table = np.array(arrays[name])
    table[:] = np.array([1, 3, 4, 6])[table % 4]
    arrays[name] = mx.array(table)
    mx.save_safetensors(path, arrays, {"format": "mlx"})
    keep = {0: [0, 1, 3, 4, 6], 1: [7, 6, 2, 1, 0], 2: [3, 4, 5, 6, 7], 3: [0, 2, 4, 5, 6]}
    plan = write_plan(tmp_path / "plan.jsonl", keep)
    out = tmp_path / "out"
    assert prune(["--source", str(source), "--output", str(out), "--plan", str(plan)]) == 0
    assert says_ok(out, tmp_path)
    by_hand = sliced_by_hand(source, tmp_path / "by hand", "deepseek_v4", keep)
    arrays = dict(mx.load(str(by_hand / "model.safetensors")))
    arrays[name] = mx.array(np.searchsorted(sorted(keep[0]), table).astype(table.dtype))
    mx.save_safetensors(str(by_hand / "model.safetensors"), arrays, {"format": "mlx"})
    assert prune(["--source", str(by_hand), "--output", str(tmp_path / "reference")]) == 0
    same(outcome(out, "streaming"), outcome(tmp_path / "reference", "streaming"))


def test_an_engine_checkpoint_is_pruned_to_the_same_tokens(sources, tmp_path, outcome) -> None:
    source = sources.stacked("gpt_oss", "mxfp4")
    layers = json.loads((source / "config.json").read_text())["num_hidden_layers"]
    keep = {layer: [7, 5, 2 + layer % 2, 0] for layer in range(layers)}
    plan = write_plan(tmp_path / "plan.jsonl", keep)
    assert prune(["--source", str(source), "--output", str(tmp_path / "whole")]) == 0
    arguments = ["--source", str(tmp_path / "whole"), "--output", str(tmp_path / "out")]
    assert prune([*arguments, "--plan", str(plan), "--candidate-id", "a"]) == 0
    reference = sliced_by_hand(source, tmp_path / "reference", "gpt_oss", keep)
    same(outcome(tmp_path / "out", "streaming"), outcome(reference, "stacked"))


def packed_by_hand(plain: Path, target: Path, quantization: dict) -> Path:
    """The plain stacked checkpoint with its experts packed as config.json's `quantization` shall say."""
    target.mkdir()
    for path in plain.iterdir():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, target / path.name)
            continue
        arrays = {}
        for name, array in mx.load(str(path)).items():
            if ".switch_mlp." not in name:
                arrays[name] = array
                continue
            module = name.removesuffix(".weight")
            q = quantization.get(module, quantization)
            parts = zip(COMPONENTS, mx.quantize(array, q["group_size"], q["bits"]), strict=True)
            arrays |= {f"{module}.{component}": part for component, part in parts}
        mx.save_safetensors(str(target / path.name), arrays, {"format": "mlx"})
    config = json.loads((plain / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"quantization": quantization}))
    return target


def test_mixed_packing_keeps_its_tokens(sources, tmp_path, outcome) -> None:
    plain = sources.stacked("qwen3_moe", "bf16")
    eight, block = {"group_size": 32, "bits": 8}, "model.layers.{}.mlp.switch_mlp.{}"
    mixed: dict = {"group_size": 64, "bits": 4}
    mixed |= {block.format(0, name): eight for name in ("gate_proj", "up_proj", "down_proj")}
    mixed |= {block.format(1, "down_proj"): eight}
    source, out = packed_by_hand(plain, tmp_path / "source", mixed), tmp_path / "out"
    assert prune(["--source", str(source), "--output", str(out)]) == 0
    assert (out / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert says_ok(out, tmp_path)
    same(outcome(out, "streaming"), outcome(source, "stacked"))


def test_packing_on_the_way_gives_the_tokens_of_packing_before(sources, tmp_path, outcome) -> None:
    plain = sources.stacked("qwen3_moe", "bf16")
    q = {"group_size": 64, "bits": 8, "mode": "affine"}
    source, out = packed_by_hand(plain, tmp_path / "source", q), tmp_path / "out"
    assert prune(["--source", str(plain), "--output", str(out), "--bits", "8"]) == 0
    assert json.loads((out / "config.json").read_text())["quantization"] == q
    same(outcome(out, "streaming"), outcome(source, "stacked"))


def arrays_of(directory: Path) -> dict[str, mx.array]:
    arrays: dict[str, mx.array] = {}
    for path in sorted(directory.glob("*.safetensors")):
        arrays |= mx.load(str(path))
    return arrays


def write_like(source: Path, target: Path, arrays: dict[str, mx.array], config: dict) -> Path:
    """A checkpoint with the small files of `source`."""
    target.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, target / path.name)
    (target / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(target / "model.safetensors"), arrays)
    return target


def test_published_fp8_gives_the_tokens_of_the_same_numbers_in_bfloat16(
    sources, tmp_path, outcome, compatibility
) -> None:
    plain, block = sources.stacked("qwen3_moe", "bf16"), (64, 32)
    published: dict[str, mx.array] = {}
    decoded: dict[str, mx.array] = {}

    def narrow(name: str, weight: mx.array, number: int) -> mx.array:
        """Publish one matrix as fp8 with a scale per block, and give its decoded values."""
        rows, columns = weight.shape
        grid = (-(-rows // block[0]), -(-columns // block[1]))
        scales = mx.random.uniform(0.01, 0.03, grid, key=mx.random.key(number)).astype(mx.bfloat16)
        wide = mx.repeat(mx.repeat(scales.astype(mx.float32), block[0], 0), block[1], 1)[:rows, :columns]
        codes = mx.to_fp8(weight.astype(mx.float32) / wide)
        published[name], published[f"{name}_scale_inv"] = codes, scales
        return (mx.from_fp8(codes, mx.float32) * wide).astype(mx.bfloat16)

    for number, (name, array) in enumerate(sorted(arrays_of(plain).items())):
        if ".switch_mlp." in name:
            names = [name.replace("switch_mlp", f"experts.{expert}") for expert in range(len(array))]
            matrices = [narrow(one, array[i], 1000 * number + i) for i, one in enumerate(names)]
            decoded[name] = mx.stack(matrices)
        elif ".self_attn." in name and array.ndim == 2:
            decoded[name] = narrow(name, array, number)
        else:
            published[name] = decoded[name] = array
    config = json.loads((plain / "config.json").read_text())
    fp8 = {"quant_method": "fp8", "weight_block_size": list(block), "fmt": "e4m3"}
    raw = write_like(plain, tmp_path / "raw", published, config | {"quantization_config": fp8})
    say_float8(raw / "model.safetensors", [n for n in published if f"{n}_scale_inv" in published])
    twin, out = write_like(plain, tmp_path / "twin", decoded, config), tmp_path / "out"
    assert prune(["--source", str(raw), "--output", str(out)]) == 0
    assert json.loads((out / "config.json").read_text()) == config
    assert says_ok(out, tmp_path)
    same(outcome(out, "streaming"), outcome(twin, "stacked"))
    compatibility("mach-prune", "qwen3_moe, published fp8", "every expert", "= MLX form")


def say_float8(path: Path, names: list[str]) -> None:
    """Change the dtype of some tensors from U8 to F8_E4M3, which MLX does not write."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    for name in names:
        header[name]["dtype"] = "F8_E4M3"
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + raw[8 + length :])


def test_published_mxfp4_blocks_give_the_tokens_of_their_mlx_form(
    sources, tmp_path, outcome, compatibility
) -> None:
    twin, published = sources.stacked("gpt_oss", "mxfp4"), {}
    arrays = arrays_of(twin)

    def alternating(gate: mx.array, up: mx.array) -> mx.array:
        return mx.stack([gate, up], axis=2).reshape(len(gate), -1, *gate.shape[2:])

    for name, array in arrays.items():
        head, block, rest = name.partition(".mlp.experts.")
        projection, _, component = rest.partition(".")
        if not block:
            published[name] = array
            continue
        if component == "weight":
            array = array.view(mx.uint8).reshape(*array.shape[:2], -1, 16)
        suffix = {"weight": "_blocks", "scales": "_scales", "bias": "_bias"}[component]
        if projection == "down_proj":
            published[f"{head}{block}down_proj{suffix}"] = array
        elif projection == "gate_proj":
            up = arrays[name.replace("gate_proj", "up_proj")]
            up = up.view(mx.uint8).reshape(array.shape) if component == "weight" else up
            published[f"{head}{block}gate_up_proj{suffix}"] = alternating(array, up)
    config = json.loads((twin / "config.json").read_text())
    stated = config.pop("quantization")
    raw = write_like(
        twin, tmp_path / "raw", published, config | {"quantization_config": {"quant_method": "mxfp4"}}
    )
    out = tmp_path / "out"
    assert prune(["--source", str(raw), "--output", str(out)]) == 0
    assert json.loads((out / "config.json").read_text()) == config | {"quantization": stated}
    assert says_ok(out, tmp_path)
    same(outcome(out, "streaming"), outcome(twin, "stacked"))
    compatibility("mach-prune", "gpt_oss, published mxfp4 blocks", "every expert", "= MLX form")


def test_published_fused_experts_give_the_tokens_of_their_mlx_form(
    sources, tmp_path, outcome, compatibility
) -> None:
    twin, published = sources.stacked("qwen3_5_moe", "bf16"), {}
    arrays = arrays_of(twin)
    norms = (".input_layernorm.weight", ".post_attention_layernorm.weight", "model.norm.weight")
    for name, array in arrays.items():
        raw_name = name.replace("language_model.model.", "model.language_model.")
        if name.endswith("conv1d.weight"):
            array = mx.moveaxis(array, 2, 1)
        elif name.endswith((*norms, ".q_norm.weight", ".k_norm.weight")):
            array = array - 1  # the published ones are centred on zero
        if ".switch_mlp." not in name:
            published[raw_name.removeprefix("language_model.")] = array
            continue
        head, _, rest = raw_name.partition(".switch_mlp.")
        if rest == "down_proj.weight":
            published[f"{head}.experts.down_proj"] = array
        elif rest == "gate_proj.weight":
            both = mx.concatenate([array, arrays[name.replace("gate_proj", "up_proj")]], axis=1)
            published[f"{head}.experts.gate_up_proj"] = both
    config = json.loads((twin / "config.json").read_text())
    raw, out = write_like(twin, tmp_path / "raw", published, config), tmp_path / "out"
    assert prune(["--source", str(raw), "--output", str(out)]) == 0
    assert (out / "config.json").read_bytes() == (raw / "config.json").read_bytes()
    assert "model.language_model.layers.0.linear_attn.conv1d.weight" in arrays_of(out), "copied as it was"
    assert says_ok(out, tmp_path)
    same(outcome(out, "streaming"), outcome(twin, "stacked"))
    compatibility("mach-prune", "qwen3_5_moe, published fused", "every expert", "= MLX form")


def test_a_tower_is_left_out_with_a_word_and_prediction_is_kept(sources, tmp_path, outcome, capsys) -> None:
    source = Path(shutil.copytree(sources.stacked("qwen3_5_moe", "affine 4-bit"), tmp_path / "source"))
    tower = {"vision_tower.blocks.0.weight": mx.zeros((500, 1000))}
    mtp = {"mtp.fc.weight": mx.arange(6.0), "mtp.layers.0.mlp.experts.gate_up_proj": mx.ones((2, 2, 2))}
    mx.save_safetensors(str(source / "model-more.safetensors"), tower | mtp)
    out = tmp_path / "out"
    assert prune(["--source", str(source), "--output", str(out)]) == 0
    err = capsys.readouterr().err
    assert err == "mach-prune: left out 0.002 GB under vision_tower, which the engine does not load\n"
    assert set(mx.load(str(out / "mtp.safetensors"))) == set(mtp)
    assert says_ok(out, tmp_path)
    same(outcome(out, "streaming"), outcome(sources.stacked("qwen3_5_moe", "affine 4-bit"), "stacked"))
