"""bf16_streaming's bank holds plain floats, and gives the other modes' logits, bit for bit on the CPU."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from mach.io.inspection import inspect_checkpoint
from mach_store.bank_cache import BankCache
from mach_store.bf16_form import Bf16Form, float_schema
from mach_store.cpu_kernels import open_kernels
from mach_store.errors import ExpertReadError
from mach_store.expert_arrays import slot_bytes
from mach_store.resident_cache import ResidentStackedExpertCache
from mach_store.settings import StoreSettings
from mach_store.stacked_source import StackedSource

FAMILIES = ("qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4")
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79]


@pytest.fixture
def open_slices(native_reader):
    """A function (stacked checkpoint, slots) → a bank of plain floats, closed at the end."""
    made = []

    def make(
        directory, slots, *, reader=native_reader, scratch_experts=4, compute=mx.float32, kernels=None
    ) -> BankCache:
        source = StackedSource(inspect_checkpoint(directory))
        form = Bf16Form(compute, reader, kernels)
        size = max(form.slot_bytes(schema) for schema in source.schemas.values())
        made.append(
            BankCache(
                source,
                reader,
                budget_bytes=slots * size,
                top_k=2,
                compute=compute,
                scratch_experts=scratch_experts,
                form=form,
            )
        )
        return made[-1]

    yield make
    for bank in made:
        bank.close()


def logits_of(model, tokens, *, chunk: int) -> mx.array:
    cache = make_prompt_cache(model)
    rows = []
    for first in range(0, len(tokens), chunk):
        out = model(mx.array([tokens[first : first + chunk]]), cache=cache)
        mx.eval(out)
        rows.append(out[0, -1])
    return mx.stack(rows)


def as_floats(source, target) -> None:
    """The stacked checkpoint `source` with its routed experts dequantised to bfloat16."""
    inspection = inspect_checkpoint(source)
    target.mkdir()
    (target / "config.json").write_text((source / "config.json").read_text().replace('"quantization"', '"q"'))
    tensors = {}
    for name in {entry.file for entry in inspection.tensors.values()}:
        tensors |= mx.load(name)
    for name in [name for name in tensors if name.endswith(".scales")]:
        path = name.removesuffix(".scales")
        layer = next((n for n in inspection.stacked if f"layers.{n}." in path), 0)
        scheme = inspection.quantization.scheme_for(path) or inspection.quantization.scheme_for(
            inspection.expert_module(layer, path.rpartition(".")[2])
        )
        parts = [tensors.pop(f"{path}.{part}", None) for part in ("weight", "scales", "biases")]
        wide = [p.astype(mx.float32) if p is not None and p.dtype == mx.bfloat16 else p for p in parts]
        floats = mx.dequantize(
            *wide,
            group_size=scheme.group_size,
            bits=scheme.bits,
            mode=scheme.mode,
            dtype=mx.float32,
        )
        tensors[f"{path}.weight"] = floats.astype(
            mx.bfloat16 if "expert" in path or "switch" in path else mx.float32
        )
    mx.save_safetensors(str(target / "model.safetensors"), tensors, {"format": "mlx"})


@pytest.mark.parametrize("family", FAMILIES)
def test_full_precision_experts_give_mlx_lms_logits_with_every_bank(
    checkpoints, open_slices, build, family
) -> None:
    directory = checkpoints.stacked(family, "none")
    reference, _ = load_model(directory)
    reference.set_dtype(mx.float32)
    layers = len(inspect_checkpoint(directory).shape.moe_layers)
    for chunk, slots, scratch in ((1, 2, 1), (5, 2, 3), (16, 3, 3), (5, 8, 1), (16, 8, 3)):
        expected = logits_of(reference, PROMPT, chunk=chunk)
        bank = open_slices(directory, slots * layers, scratch_experts=scratch)
        assert bank.slots == slots * layers
        model = build(directory, bank, transient_min_tokens=10)
        assert mx.array_equal(logits_of(model, PROMPT, chunk=chunk), expected), (chunk, slots)
        bank.check()
        assert bank.nbytes <= bank.budget_bytes
        assert bank.stats()["scratch_bytes"] <= bank.scratch_bytes
        assert bank.whole == (slots == 8)
        assert not bank.host_free


@pytest.mark.parametrize("quantization", ["affine", "mxfp4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_experts_give_the_logits_of_the_same_values_as_floats(
    checkpoints, open_slices, build, family, quantization, tmp_path, reader
) -> None:
    quantised = checkpoints.stacked(family, quantization)
    as_floats(quantised, tmp_path / "floats")
    reference, _ = load_model(tmp_path / "floats")
    reference.set_dtype(mx.float32)
    layers = len(inspect_checkpoint(quantised).shape.moe_layers)
    # Everything but the experts as the quantised checkpoint has it, so that only they are compared.
    for chunk in (1, 16):
        floats = ResidentStackedExpertCache(inspect_checkpoint(tmp_path / "floats"), mx.float32)
        expected = logits_of(build(quantised, floats), PROMPT, chunk=chunk)
        bank = open_slices(quantised, 2 * layers + 3, reader=reader)
        found = logits_of(build(quantised, bank, transient_min_tokens=10), PROMPT, chunk=chunk)
        assert mx.array_equal(found, expected)
        assert bank.totals().evictions > 0 or chunk == 16
        bank.check()


@pytest.mark.parametrize("quantization", ["none", "affine"])
def test_the_disk_loop_agrees(checkpoints, open_slices, build, quantization) -> None:
    directory = checkpoints.stacked("gpt_oss", quantization)
    bank = open_slices(directory, 5)
    gather = logits_of(build(directory, bank), PROMPT, chunk=1)
    disk = logits_of(build(directory, bank, dispatch="disk"), PROMPT, chunk=1)
    assert mx.array_equal(gather, disk)


def test_a_bfloat16_bank_takes_half_of_a_float32_one(checkpoints, open_slices, open_bank) -> None:
    narrow = open_slices(checkpoints.stacked("qwen3_moe", "none"), 5)
    wide = open_bank(checkpoints.engine("qwen3_moe", "none"), 5)
    assert narrow.nbytes * 2 == wide.nbytes
    assert narrow.residency == narrow.stats()["residency"] == "bf16_streaming"


def test_floats_stay_as_they_are_stored(checkpoints) -> None:
    for quantization, dtypes in (("none", {"bfloat16"}), ("affine", {"bfloat16"}), ("mxfp4", {"bfloat16"})):
        source = StackedSource(inspect_checkpoint(checkpoints.stacked("gpt_oss", quantization)))
        for schema in source.schemas.values():
            floats = float_schema(schema)
            assert {segment.dtype for segment in floats.segments} == dtypes
            assert {segment.component for segment in floats.segments} == {"weight", "bias"}
            assert floats.quantization == (None, None, None)
            assert slot_bytes(floats, mx.bfloat16) == floats.nbytes
        source.close()


def test_where_bfloat16_is_computed_with_nothing_is_widened(checkpoints, open_slices) -> None:
    bank = open_slices(checkpoints.stacked("qwen3_moe", "none"), 16, compute=mx.bfloat16)
    assert not any(pool.narrow for pool in bank._pools)
    bank.prewarm()
    assert bank.whole and bank.host_free and bank.scratch_bytes == 0
    arrays = [array for _, array in tree_flatten(bank.layers[0].components)]
    assert {array.dtype for array in arrays} == {mx.bfloat16}


def test_a_read_that_fails_names_the_expert_of_the_whole_batch(
    checkpoints, copy_checkpoint, open_slices
) -> None:
    directory = copy_checkpoint(checkpoints.stacked("qwen3_moe", "affine"))
    bank = open_slices(directory, 16)
    parts = inspect_checkpoint(directory).stacked[0].values()
    last = max((entry for part in parts for entry in part.values()), key=lambda entry: entry.start)
    with open(last.file, "r+b") as handle:
        handle.truncate(last.start + last.nbytes // 8 * 6)
    with pytest.raises(ExpertReadError, match="layer 0, expert 6") as caught:
        bank.layers[0].acquire(range(8))
    assert caught.value.expert == 6
    bank.check()


@pytest.mark.parametrize("quantization", ["none", "affine", "mxfp4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_native_kernels_compute_from_the_bank_itself_with_the_bits_of_widened_experts(
    checkpoints, open_slices, build, family, quantization
) -> None:
    kernels = open_kernels(StoreSettings())
    assert kernels.native
    directory = checkpoints.stacked(family, quantization)
    layers = len(inspect_checkpoint(directory).shape.moe_layers)
    for chunk, slots in ((1, 3), (16, 3), (1, 8)):
        wide = open_slices(directory, slots * layers)
        expected = logits_of(
            build(directory, wide, transient_min_tokens=10, kernels=kernels), PROMPT, chunk=chunk
        )
        bank = open_slices(directory, slots * layers, kernels=kernels)
        bank.prewarm()
        model = build(directory, bank, transient_min_tokens=10, kernels=kernels)
        assert mx.array_equal(logits_of(model, PROMPT, chunk=chunk), expected), (chunk, slots)
        assert all(pool.narrow for pool in wide._pools) and not any(pool.narrow for pool in bank._pools)
        assert bank.nbytes == wide.nbytes
        assert bank.whole == bank.host_free == (slots == 8)
        # The arena is for prefill alone, and holds bfloat16 too.
        assert (bank.stats()["scratch_bytes"] > 0) == (chunk == 16 and slots == 3)
        if slots == 8:
            assert bank.scratch_bytes == 0 < wide.scratch_bytes
        else:
            assert bank.stats()["scratch_bytes"] <= bank.scratch_bytes < wide.scratch_bytes
        bank.check()
