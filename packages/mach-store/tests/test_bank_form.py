"""Experts stay in memory as they are stored where native kernels compute, and the bits stay too."""

import itertools

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.switch_layers import SwiGLU

from mach.io.inspection import inspect_checkpoint
from mach.io.sidecar_layout import PROJECTIONS, Quantization, build_schema
from mach_store.bank_form import StoredForm, kernels_take_schema
from mach_store.cpu_kernels import open_kernels, stock_kernels
from mach_store.errors import StoreError
from mach_store.expert_arrays import ExpertArrays
from mach_store.expert_block import ExpertBlock
from mach_store.gather_switch_glu import GatherSwitchGLU
from mach_store.resident_cache import ResidentStackedExpertCache
from mach_store.scatter_reader import python_twin
from mach_store.settings import StoreSettings

KERNELS = open_kernels(StoreSettings())
FAMILIES = ("qwen3_moe", "qwen3_5_moe", "gpt_oss", "gemma4", "deepseek_v4")
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26]
HIDDEN = WIDTH = 128


def logits_of(model, *, chunk: int) -> mx.array:
    cache = make_prompt_cache(model)
    rows = []
    for first in range(0, len(PROMPT), chunk):
        rows.append(model(mx.array([PROMPT[first : first + chunk]]), cache=cache)[0, -1])
        mx.eval(rows[-1])
    return mx.stack(rows)


@pytest.mark.parametrize("quantization", ["affine", "mxfp4", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_experts_as_stored_give_the_bits_of_widened_ones(
    checkpoints, open_bank, build, family, quantization
) -> None:
    directory = checkpoints.engine(family, quantization)
    layers = len(inspect_checkpoint(directory).shape.moe_layers)
    for chunk, slots in ((1, 3), (12, 3), (1, 8)):
        wide = open_bank(directory, slots * layers)
        stored = open_bank(directory, slots * layers, kernels=KERNELS)
        results = []
        for bank in (wide, stored):
            bank.prewarm()
            model = build(directory, bank, transient_min_tokens=10, kernels=KERNELS)
            results.append(logits_of(model, chunk=chunk))
            bank.release()
            bank.check()
        assert mx.array_equal(*results), (chunk, slots)
        assert stored.slots == wide.slots
        assert stored.nbytes == slots * sum(schema.nbytes for schema in stored.source.schemas.values())
        assert stored.nbytes < wide.nbytes or quantization == "mxfp4"


@pytest.mark.parametrize("quantization", ["affine", "none"])
def test_stacked_experts_stay_as_they_are_stored_too(checkpoints, build, quantization) -> None:
    directory = checkpoints.stacked("gpt_oss", quantization)
    wide, stored = (
        ResidentStackedExpertCache(inspect_checkpoint(directory), mx.float32, kernels)
        for kernels in (None, KERNELS)
    )
    assert stored.nbytes == inspect_checkpoint(directory).expert_bytes < wide.nbytes
    for chunk in (1, 12):
        wanted = logits_of(build(directory, wide, kernels=KERNELS), chunk=chunk)
        assert mx.array_equal(logits_of(build(directory, stored, kernels=KERNELS), chunk=chunk), wanted)


def schema_of(packing: Quantization | None, dtypes: dict[str, str]):
    tensors = []
    for projection in PROJECTIONS:
        if packing is None:
            tensors.append((f"{projection}.weight", dtypes["weight"], (HIDDEN, WIDTH)))
        else:
            tensors.append((f"{projection}.weight", "uint32", (HIDDEN, WIDTH * packing.bits // 32)))
            groups = (HIDDEN, WIDTH // packing.group_size)
            scales = dtypes["scales"] if packing.mode == "affine" else "uint8"
            tensors.append((f"{projection}.scales", scales, groups))
            if packing.mode == "affine":
                tensors.append((f"{projection}.biases", dtypes["biases"], groups))
        tensors.append((f"{projection}.bias", dtypes["bias"], (HIDDEN,)))
    return build_schema(tensors, dict.fromkeys(PROJECTIONS, packing))


def test_the_rule_says_of_every_packing_and_dtype_what_the_kernels_say() -> None:
    modes = [("affine", bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
    modes += [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]
    packings = [None, *(Quantization(mode=m, bits=b, group_size=g) for m, b, g in modes)]
    floats = ("float32", "bfloat16", "float16")
    seen = set()
    for packing, own, biases, bias in itertools.product(packings, floats, floats, floats):
        schema = schema_of(packing, {"weight": own, "scales": own, "biases": biases, "bias": bias})
        stored = ExpertArrays(schema, 1, mx.bfloat16, python_twin())
        block = ExpertBlock(SwiGLU(), KERNELS)
        native = block.native_product(stored.components, stored.packing) is not None
        assert kernels_take_schema(schema, KERNELS) == native, (packing, own, biases, bias, block.reason)
        assert not kernels_take_schema(schema, stock_kernels("to compare"))
        assert not kernels_take_schema(schema, None)
        form = StoredForm(mx.float32, python_twin(), KERNELS)
        arrays = form.bank(schema, 2)
        assert arrays.nbytes == 2 * form.slot_bytes(schema) == form.scratch_bytes(schema, 2)
        kinds = {a.dtype for parts in arrays.components.values() for a in parts.values()}
        assert native or mx.bfloat16 not in kinds
        seen.add((packing is None, native))
    assert len(seen) == 4


def test_an_activation_that_the_kernels_do_not_know_is_refused_where_experts_are_held_for_them(
    checkpoints, open_bank
) -> None:
    bank = open_bank(checkpoints.engine(), 6, kernels=KERNELS)
    with pytest.raises(StoreError, match="no activation like function.*LME_CPU_KERNELS=0"):
        GatherSwitchGLU(bank, 0, lambda up, gate: up * gate, kernels=KERNELS)
    with pytest.raises(StoreError, match="to compare.*LME_CPU_KERNELS=0"):
        GatherSwitchGLU(bank, 0, SwiGLU(), kernels=stock_kernels("to compare"))
    GatherSwitchGLU(bank, 0, SwiGLU(), kernels=KERNELS)
