"""Families × quantisations × residency modes: every cell of docs/compatibility.md is run, or refused, here.

Each test states what it found through the `compatibility` fixture, which compares it with the page's data.
"""

import copy
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model, quantize_model

from mach.errors import MachError
from mach.io.arch_registry import REGISTRY, adapter_for
from mach.io.checkpoint_path import resolve_checkpoint
from mach.io.config_file import read_config
from mach.io.inspection import inspect_checkpoint
from mach_decode.engine import UNSWAPPED, Engine, EngineConfig
from mach_decode.request import GenerationRequest
from mach_store.errors import MemoryBudgetError
from mach_store.model_builder import family_classes
from mach_store.model_repairs import widen_embeddings
from mach_store.prune.pruner import prune_checkpoint
from mach_store.synthetic_dense import dense_config, write_dense_checkpoint

CONFIGS = Path(__file__).parent / "configs"
FAMILIES = ("qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4", "deepseek_v4")


def mixed(path: str, _module: object) -> dict[str, Any]:
    """Another width per projection and layer, as mixed recipes have it."""
    if path.endswith("down_proj"):
        return {"group_size": 32, "bits": 8, "mode": "affine"}
    return {"group_size": 64, "bits": 6 if "layers.1." in path else 4, "mode": "affine"}


PACKINGS: dict[str, dict[str, Any] | None] = {
    "bf16": None,
    **{f"affine {bits}-bit": {"bits": bits, "group_size": 64} for bits in (2, 3, 4, 5, 6, 8)},
    "mxfp4": {"mode": "mxfp4", "bits": 4, "group_size": 32},
    "nvfp4": {"mode": "nvfp4", "bits": 4, "group_size": 16},
    "mxfp8": {"mode": "mxfp8", "bits": 8, "group_size": 32},
    "mixed 4, 6 and 8-bit": {"bits": 4, "group_size": 64, "quant_predicate": mixed},
}
PROMPT = tuple((7 * n * n + 3 * n + 11) % 256 for n in range(40))
COUNT = 8
"""Tokens generated; the prompt goes through the scratch arena, and past the sliding windows of 16."""

COLUMNS = {
    "streaming, sidecar": "streaming",
    "streaming, stacked slices": "streaming",
    "stacked": "stacked",
    "`--backend openai`": UNSWAPPED,
}


class Maker:
    """Checkpoints of one family, each made once."""

    def __init__(self, family: str, root: Path) -> None:
        self.family, self._root = family, root
        self._config = json.loads((CONFIGS / f"{family}.json").read_text())
        # Random tied embeddings make a model that repeats its last token, whatever the experts say.
        self._config.get("text_config", self._config)["tie_word_embeddings"] = False

    def stacked(self, packing: str) -> Path:
        """As mlx_lm.convert writes it: experts on axis 0, everything that can be is packed."""
        directory = self._root / f"stacked {packing}"
        if not directory.exists():
            module = import_module(REGISTRY[self.family].implementation)
            mx.random.seed(3)
            model = module.Model(module.ModelArgs.from_dict(copy.deepcopy(self._config)))
            biases = [(name, a) for name, a in tree_flatten(model.parameters()) if name.endswith(".bias")]
            model.load_weights([(name, mx.random.normal(a.shape) * 0.1) for name, a in biases], strict=False)
            model.set_dtype(mx.bfloat16)
            config = self._config
            if PACKINGS[packing] is not None:
                model, config = quantize_model(model, copy.deepcopy(config), **PACKINGS[packing])
            self._write(directory, config, dict(tree_flatten(model.parameters())))
        return directory

    def sliced(self, packing: str) -> Path:
        """The engine layout, made of the stacked one by mach-prune."""
        directory = self._root / f"sliced {packing}"
        if not directory.exists():
            prune_checkpoint(self.stacked(packing), directory)
        return directory

    def floats(self, packing: str) -> Path:
        """`stacked` with the same values as bfloat16 in place of packed experts; the rest is as it was."""
        if PACKINGS[packing] is None:
            return self.stacked(packing)
        directory = self._root / f"floats {packing}"
        source = self.stacked(packing)
        config = json.loads((source / "config.json").read_text())
        inspection = inspect_checkpoint(source)
        tensors = dict(mx.load(str(source / "model.safetensors")))
        for layer in inspection.shape.moe_layers:
            for projection in ("gate_proj", "up_proj", "down_proj"):
                path = inspection.expert_module(layer, projection)
                scheme = inspection.quantization.scheme_for(path)
                parts = [tensors.pop(f"{path}.{part}", None) for part in ("weight", "scales", "biases")]
                wide = [
                    p.astype(mx.float32) if p is not None and p.dtype == mx.bfloat16 else p for p in parts
                ]
                tensors[f"{path}.weight"] = mx.dequantize(
                    *wide,
                    group_size=scheme.group_size,
                    bits=scheme.bits,
                    mode=scheme.mode,
                    dtype=mx.float32,
                ).astype(mx.bfloat16)
                config["quantization"][path] = False
        self._write(directory, config, tensors)
        return directory

    def raw(self, layout: str) -> Path:
        """bfloat16 experts as transformers saves them: one by one, or with gate and up in one tensor."""
        directory = self._root / f"raw {layout}"
        stacked = self.stacked("bf16")
        inspection = inspect_checkpoint(stacked)
        tensors = dict(mx.load(str(stacked / "model.safetensors")))
        form = next(
            form
            for form in inspection.adapter.names.raw
            if form.layout == layout and "plain" in form.encodings
        )
        for layer in inspection.shape.moe_layers:
            parts = {}
            for projection in ("gate_proj", "up_proj", "down_proj"):
                path = inspection.expert_module(layer, projection)
                parts[projection] = tensors.pop(f"{path}.weight")
                parts[f"{projection} bias"] = tensors.pop(f"{path}.bias", None)
            if layout == "per_expert":
                for expert in range(inspection.shape.num_experts):
                    block = form.blocks[0].format(layer=layer, expert=expert)
                    for projection in form.projections:
                        (held,) = projection.holds
                        tensors[f"{block}.{projection.name}{form.weight}"] = parts[held][expert]
                        if parts[f"{held} bias"] is not None:
                            tensors[f"{block}.{projection.name}{form.bias}"] = parts[f"{held} bias"][expert]
                continue
            block = form.blocks[0].format(layer=layer)
            for projection in form.projections:
                for suffix, kind in ((form.weight, ""), (form.bias, " bias")):
                    held = [parts[name + kind] for name in projection.holds]
                    if held[0] is None:
                        continue
                    if form.interleaving == "rows" and len(held) > 1:
                        joined = mx.stack(held, axis=2).reshape(held[0].shape[0], -1, *held[0].shape[2:])
                    else:
                        joined = mx.concatenate(held, axis=1)
                    if form.axes == "in_out" and not kind:
                        joined = mx.contiguous(joined.swapaxes(1, 2))
                    tensors[f"{block}.{projection.name}{suffix}"] = joined
        self._write(directory, self._config, tensors)
        return directory

    @staticmethod
    def _write(directory: Path, config: dict[str, Any], tensors: dict[str, mx.array]) -> None:
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config))
        mx.save_safetensors(str(directory / "model.safetensors"), tensors, {"format": "mlx"})
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(resolve_checkpoint("mach-pico") / name, directory / name)


@pytest.fixture(scope="module")
def makers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Maker]:
    made: dict[str, Maker] = {}

    def maker(family: str) -> Maker:
        if family not in made:
            made[family] = Maker(family, tmp_path_factory.mktemp(family))
        return made[family]

    return maker


def mlx_lm_tokens(directory: Path) -> list[int]:
    """What mlx-lm's own model gives."""
    model, _ = load_model(directory)
    model.set_dtype(mx.float32)
    return greedy(model)


def whole_tokens(directory: Path) -> list[int]:
    """What the family's model gives as mach builds it, faults repaired, but with its own experts in it."""
    config = read_config(directory)
    model_class, arguments, wanted = family_classes(adapter_for(config), config)
    changed = {name: value for name, value in wanted.items() if config.values.get(name, ...) != value}
    model, _ = load_model(
        directory, model_config=changed, get_model_classes=lambda config: (model_class, arguments)
    )
    model.set_dtype(mx.float32)
    widen_embeddings(model)
    return greedy(model)


def greedy(model: Any) -> list[int]:
    """The most likely tokens after PROMPT.

    Not through mlx-lm's `generate_step`: where a packed embedding makes activations bfloat16, that subtracts
    in bfloat16 before it chooses, and so makes ties of logits that differ.
    """
    cache = make_prompt_cache(model)
    mx.eval(model(mx.array([PROMPT[:-1]]), cache=cache))
    tokens = [PROMPT[-1]]
    for _ in range(COUNT):
        logits = model(mx.array([tokens[-1:]]), cache=cache)[0, -1]
        tokens.append(int(logits.astype(mx.float32).argmax().item()))
    return tokens[1:]


def reference(directory: Path) -> tuple[list[int], str]:
    """The tokens that a stacked checkpoint should give in mach, and what to call them."""
    tokens = whole_tokens(directory)
    adapter = inspect_checkpoint(directory).adapter
    if not adapter.implementation.startswith("mlx_lm."):
        return tokens, "= unswapped"
    return tokens, "= mlx-lm" if tokens == mlx_lm_tokens(directory) else "= mlx-lm, repaired"


def engine_tokens(directory: Path, residency: str) -> list[int]:
    """What the engine gives, with the smallest bank where there is one."""
    budget = None
    if residency in ("streaming", "bf16_streaming"):
        with pytest.raises(MemoryBudgetError) as least:
            Engine.load(
                EngineConfig(checkpoint=str(directory), expert_residency=residency, expert_cache_gb=1e-9)
            )
        budget = (least.value.needed + 0.5) / 1e9
    engine = Engine.load(
        EngineConfig(checkpoint=str(directory), expert_residency=residency, expert_cache_gb=budget)
    )
    assert engine.store.residency == residency
    if budget is not None:
        shape = inspect_checkpoint(directory).shape
        assert engine.store.slots == shape.top_k * len(shape.moe_layers)
    events = engine.generate(GenerationRequest(prompt=PROMPT, max_tokens=COUNT))
    tokens = [event.token for event in events if event.token is not None]
    assert len(set(tokens)) > 1, "a model that repeats one token shows little"
    engine.close()
    return tokens


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_mode_gives_the_references_tokens(
    family: str, packing: str, makers: Callable[[str], Maker], compatibility, capsys
) -> None:
    maker = makers(family)
    sliced, stacked = maker.sliced(packing), maker.stacked(packing)
    row, runs = f"{family}, {packing}", REGISTRY[family].stacked_supported
    expected, same = reference(stacked)
    for column, residency in COLUMNS.items():
        directory = sliced if column == "streaming, sidecar" else stacked
        if residency == UNSWAPPED and runs:
            found = outcome(directory, residency, mlx_lm_tokens(stacked), "= mlx-lm")
        else:
            found = outcome(directory, residency, expected, same)
        assert found.startswith("=") == (runs or directory == sliced), found
        compatibility("quantisations", row, column, found)
    floats, same = reference(maker.floats(packing)) if runs else ([], "")
    found = outcome(stacked, "bf16_streaming", floats, same)
    assert found.startswith("=") == runs, found
    if runs and PACKINGS[packing] is not None:
        found += ", bf16 values"
    compatibility("quantisations", row, "bf16_streaming", found)


MODES = {
    "`--streaming`": "streaming",
    "`--no-streaming`": "stacked",
    "bf16_streaming": "bf16_streaming",
    "`--backend openai`": UNSWAPPED,
}
LAYOUTS = ("sliced", "stacked", "raw per_expert", "raw fused")
DENSE = "qwen3, dense"
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_runs_or_is_refused_in_every_mode(
    family: str, layout: str, makers: Callable[[str], Maker], compatibility, capsys
) -> None:
    maker = makers(family)
    if layout.startswith("raw"):
        directory = maker.raw(layout.removeprefix("raw "))
    else:
        directory = getattr(maker, layout)("bf16")
    expected, same = reference(maker.stacked("bf16"))
    for column, residency in MODES.items():
        if residency == UNSWAPPED and REGISTRY[family].stacked_supported:
            expected, same = mlx_lm_tokens(maker.stacked("bf16")), "= mlx-lm"
        found = outcome(directory, residency, expected, same)
        compatibility("layouts", f"{family}, {layout}", column, found)


def test_a_dense_model_that_is_not_registered_runs_as_mlx_lm_has_it(compatibility, tmp_path, capsys) -> None:
    pico = resolve_checkpoint("mach-pico")
    write_dense_checkpoint(tmp_path, dense_config(), tokenizer_from=pico)
    expected = mlx_lm_tokens(tmp_path)
    for column, residency in MODES.items():
        compatibility("layouts", DENSE, column, outcome(tmp_path, residency, expected, "= mlx-lm"))


def outcome(directory: Path, residency: str, expected: list[int], same: str) -> str:
    """`same` where the tokens are, or the refusal without what differs from machine to machine."""
    try:
        tokens = engine_tokens(directory, residency)
    except MachError as error:
        text = str(error).replace(str(directory), "DIR").removeprefix("DIR: ")
        text = re.sub(r"(mlx-lm cannot load it): .*", r"\1", text)
        return "refused: " + re.sub(r"; mach-archs lists what is: [^.]*", "", text)
    assert tokens == expected, residency
    return same


def test_the_page_holds_these_results_and_no_others() -> None:
    results = json.loads((ROOT / "docs" / "compatibility.json").read_text())
    packings = {f"{family}, {packing}" for family in FAMILIES for packing in PACKINGS}
    layouts = {f"{family}, {layout}" for family in FAMILIES for layout in LAYOUTS} | {DENSE}
    for section, rows, columns in (
        ("quantisations", packings, {*COLUMNS, "bf16_streaming"}),
        ("layouts", layouts, set(MODES)),
    ):
        assert set(results[section]) == rows
        assert all(set(row) == columns for row in results[section].values())
    command = [sys.executable, str(ROOT / "tools" / "compatibility_page.py"), "--check"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
