"""Tiny random checkpoints of every family, stores over them, and sources whose bytes a test knows."""

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mach.io.inspection import inspect_checkpoint
from mach.io.sidecar_layout import PROJECTIONS, Quantization, RecordSchema, build_schema
from mach_store.bank_cache import BankCache
from mach_store.bank_form import StoredForm
from mach_store.cpu_kernels import CpuKernels
from mach_store.disk_switch_glu import DiskSwitchGLU
from mach_store.engine_checkpoint import write_stacked_checkpoint
from mach_store.eviction import DEFAULT_POLICY
from mach_store.expert_source import Location
from mach_store.gather_switch_glu import GatherSwitchGLU
from mach_store.model_builder import build_model
from mach_store.scatter_reader import ScatterReader, open_reader, python_twin
from mach_store.settings import StoreSettings
from mach_store.sidecar.sidecar_source import SidecarSource
from mach_store.synthetic_checkpoint import write_synthetic_checkpoint

# Exact comparisons hold on the CPU; a GPU's kernels change with the number of rows.
mx.set_default_device(mx.cpu)

VOCABULARY = 96
HIDDEN = 64
WIDTH = 64
EXPERTS = 8
TOP_K = 2
LAYER_TYPES = ["sliding_attention", "full_attention"]
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "num_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": WIDTH,
        "rms_norm_eps": 1e-6,
        "vocab_size": VOCABULARY,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "max_position_embeddings": 256,
        "norm_topk_prob": True,
    },
    "qwen3_5_moe": {
        "model_type": "qwen3_5_moe",
        "text_config": {
            "model_type": "qwen3_5_moe_text",
            "hidden_size": HIDDEN,
            "num_hidden_layers": 4,
            "intermediate_size": 128,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "rms_norm_eps": 1e-6,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 256,
            "linear_num_value_heads": 2,
            "linear_num_key_heads": 1,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
            "linear_conv_kernel_dim": 4,
            "full_attention_interval": 4,
            "tie_word_embeddings": False,
            "num_experts": EXPERTS,
            "num_experts_per_tok": TOP_K,
            "shared_expert_intermediate_size": 64,
            "moe_intermediate_size": WIDTH,
            "norm_topk_prob": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.25,
                "mrope_section": [2, 1, 1],
            },
        },
    },
    "gpt_oss": {
        "model_type": "gpt_oss",
        "num_hidden_layers": 2,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-5,
        "hidden_size": HIDDEN,
        "intermediate_size": WIDTH,
        "head_dim": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "sliding_window": 16,
        "rope_theta": 150000,
        "rope_scaling": {"rope_type": "default"},
        "layer_types": LAYER_TYPES,
    },
    "gemma4": {
        "model_type": "gemma4",
        "vocab_size": VOCABULARY,
        "text_config": {
            "model_type": "gemma4_text",
            "hidden_size": HIDDEN,
            "num_hidden_layers": 2,
            "intermediate_size": 64,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "num_global_key_value_heads": 1,
            "head_dim": 32,
            "global_head_dim": 64,
            "rms_norm_eps": 1e-6,
            "vocab_size": VOCABULARY,
            "vocab_size_per_layer_input": VOCABULARY,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
            "sliding_window": 16,
            "sliding_window_pattern": 2,
            "max_position_embeddings": 256,
            "attention_k_eq_v": True,
            "final_logit_softcapping": 30.0,
            "use_double_wide_mlp": False,
            "enable_moe_block": True,
            "num_experts": EXPERTS,
            "top_k_experts": TOP_K,
            "moe_intermediate_size": WIDTH,
            "layer_types": LAYER_TYPES,
        },
    },
    "deepseek_v4": {
        "model_type": "deepseek_v4",
        "hidden_size": HIDDEN,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "qk_rope_head_dim": 16,
        "q_lora_rank": 32,
        "o_groups": 2,
        "o_lora_rank": 32,
        "n_routed_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "moe_intermediate_size": WIDTH,
        "num_hash_layers": 1,
        "sliding_window": 16,
        "compress_ratios": [0, 4, 128, 4, 0],
        "index_n_heads": 8,
        "index_head_dim": 16,
        "index_topk": 6,
        "swiglu_limit": 10.0,
        "rope_scaling": {"type": "yarn", "factor": 16, "original_max_position_embeddings": 64},
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 1024,
        "num_nextn_predict_layers": 1,
    },
}
QUANTIZATIONS: dict[str, dict[str, Any] | None] = {
    "affine": {"mode": "affine", "bits": 4, "group_size": 32},
    "mxfp4": {"mode": "mxfp4", "bits": 4, "group_size": 32},
    "none": None,
}


@pytest.fixture
def config() -> Callable[..., dict[str, Any]]:
    """A function (family, quantization name) → a config.json's content, to be changed at will."""

    def make(family: str = "qwen3_moe", quantization: str = "affine") -> dict[str, Any]:
        fields: dict[str, Any] = json.loads(json.dumps(CONFIGS[family]))
        if QUANTIZATIONS[quantization] is not None:
            fields["quantization"] = dict(QUANTIZATIONS[quantization] or {})
        return fields

    return make


class Checkpoints:
    """Makes each checkpoint once; nobody writes into them."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def engine(self, family: str = "qwen3_moe", quantization: str = "affine") -> Path:
        """The engine layout: experts in a sidecar."""
        path = self._root / f"{family}-{quantization}"
        if not path.exists():
            fields = dict(CONFIGS[family])
            if QUANTIZATIONS[quantization] is not None:
                fields["quantization"] = QUANTIZATIONS[quantization]
            write_synthetic_checkpoint(path, fields, seed=7, alignment=4096)
        return path

    def stacked(self, family: str = "qwen3_moe", quantization: str = "affine") -> Path:
        """The same experts on axis 0."""
        path = self._root / f"{family}-{quantization}-stacked"
        if not path.exists():
            write_stacked_checkpoint(self.engine(family, quantization), path)
        return path


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def write_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function (config.json's content, tensors) → the directory of a checkpoint, written over each time."""
    directory = tmp_path_factory.mktemp("written")

    def write(fields: dict[str, Any], tensors: dict[str, mx.array]) -> Path:
        (directory / "config.json").write_text(json.dumps(fields))
        mx.save_safetensors(str(directory / "model.safetensors"), tensors, {"format": "mlx"})
        return directory

    return write


@pytest.fixture
def copy_checkpoint(tmp_path: Path) -> Callable[[Path], Path]:
    """A function that copies a checkpoint to where a test may damage it."""

    def copy(directory: Path) -> Path:
        return Path(shutil.copytree(directory, tmp_path / "copy"))

    return copy


@pytest.fixture(scope="session")
def native_reader() -> ScatterReader:
    reader = open_reader(StoreSettings())
    assert reader.native
    return reader


@pytest.fixture(params=["native", "python"])
def reader(request: pytest.FixtureRequest, native_reader: ScatterReader) -> ScatterReader:
    return native_reader if request.param == "native" else python_twin()


@pytest.fixture
def open_bank(native_reader: ScatterReader) -> Iterator[Callable[..., BankCache]]:
    """A function (checkpoint directory, slots of the whole bank) → BankCache, closed at the end."""
    made: list[BankCache] = []

    def make(
        directory: Path,
        slots: int,
        *,
        reader: ScatterReader = native_reader,
        scratch_experts: int = 4,
        kernels: CpuKernels | None = None,
        policy: str = DEFAULT_POLICY,
        no_prefetch: str | None = None,
    ) -> BankCache:
        source = SidecarSource(str(directory / "expert_sidecar"))
        form = StoredForm(mx.float32, reader, kernels)
        size = max(form.slot_bytes(schema) for schema in source.schemas.values())
        made.append(
            BankCache(
                source,
                reader,
                budget_bytes=slots * size,
                top_k=TOP_K,
                compute=mx.float32,
                scratch_experts=scratch_experts,
                form=form,
                policy=policy,
                no_prefetch=no_prefetch,
            )
        )
        return made[-1]

    yield make
    for bank in made:
        bank.close()


@pytest.fixture
def build() -> Callable[..., Any]:
    """A function (checkpoint directory, store) → the model with its experts in the store."""

    def make(
        directory: Path,
        store: Any,
        *,
        dispatch: str = "gather",
        transient_min_tokens: int = 32,
        **options: Any,
    ) -> Any:
        inspection = inspect_checkpoint(directory)

        def swap(layer: int, original: Any) -> Any:
            if dispatch == "disk":
                return DiskSwitchGLU(store, layer, original.activation)
            return GatherSwitchGLU(
                store, layer, original.activation, transient_min_tokens=transient_min_tokens, **options
            )

        return build_model(directory, inspection.adapter, inspection.shape.moe_layers, swap)[0]

    return make


def make_schema(hidden: int = 32, width: int = 32, *, packed: bool = True) -> RecordSchema:
    """A small record: affine 4-bit with groups of 32, or plain bfloat16."""
    tensors: list[tuple[str, str, tuple[int, ...]]] = []
    for projection in PROJECTIONS:
        rows, columns = (hidden, width) if projection == "down_proj" else (width, hidden)
        if packed:
            tensors.append((f"{projection}.weight", "uint32", (rows, columns // 8)))
            tensors.append((f"{projection}.scales", "bfloat16", (rows, columns // 32)))
            tensors.append((f"{projection}.biases", "bfloat16", (rows, columns // 32)))
        else:
            tensors.append((f"{projection}.weight", "bfloat16", (rows, columns)))
    q = Quantization(mode="affine", bits=4, group_size=32) if packed else None
    return build_schema(tensors, dict.fromkeys(PROJECTIONS, q))


class FileSource:
    """An ExpertSource over one file of random bytes; `broken` experts have a wrong checksum."""

    def __init__(self, path: Path, schemas: dict[int, RecordSchema], num_experts: int) -> None:
        self.schemas, self.num_experts, self._path = schemas, num_experts, path
        self.broken: set[tuple[int, int]] = set()
        self.reads: list[tuple[int, int]] = []
        self._offsets: dict[tuple[int, int], int] = {}
        random = np.random.default_rng(5)
        self._records: dict[tuple[int, int], bytes] = {}
        at = 0
        with open(path, "wb") as out:
            for layer, schema in schemas.items():
                for expert in range(num_experts):
                    record = random.bytes(schema.nbytes)
                    self._offsets[layer, expert] = at
                    self._records[layer, expert] = record
                    at += out.write(record)
        self._fd = os.open(path, os.O_RDONLY)

    def record(self, layer: int, expert: int) -> bytes:
        """What was written for one expert."""
        return self._records[layer, expert]

    def locate(self, layer: int, experts: Sequence[int]) -> Location:
        self.reads.extend((layer, expert) for expert in experts)
        return Location(
            fds=[self._fd] * len(experts),
            offsets=[self._offsets[layer, expert] for expert in experts],
            crcs=[
                zlib.crc32(self._records[layer, expert]) ^ ((layer, expert) in self.broken)
                for expert in experts
            ],
        )

    def path_of(self, layer: int, segment: int, expert: int) -> str:
        return str(self._path)

    def changed(self, fds: Sequence[int]) -> str | None:
        return None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


@pytest.fixture
def schema() -> Callable[..., RecordSchema]:
    return make_schema


@pytest.fixture
def file_source(tmp_path: Path) -> Iterator[Callable[..., FileSource]]:
    """A function (layer → schema, experts) → FileSource."""
    made: list[FileSource] = []

    def make(schemas: dict[int, RecordSchema], num_experts: int) -> FileSource:
        made.append(FileSource(tmp_path / f"experts{len(made)}.bin", schemas, num_experts))
        return made[-1]

    yield make
    for source in made:
        source.close()
