"""Builders of small and large pretended checkpoints: real headers over sparse data."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import settings

from mach.io.arch_registry import adapter_for
from mach.io.config_file import ConfigFields
from mach.io.model_tensors import model_tensors

# How long an example takes says more about the machine than about the code.
settings.register_profile("mach-core", deadline=None)
settings.load_profile("mach-core")

BITS = {"U32": 32, "BF16": 16, "F16": 16, "F32": 32, "U8": 8, "F8_E4M3": 8}
Tensors = Mapping[str, tuple[str, tuple[int, ...]]]


def write_safetensors(path: Path, tensors: Tensors) -> None:
    """A safetensors file whose data is a hole of the right size."""
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = BITS[dtype] // 8
        for extent in shape:
            size *= extent
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    with open(path, "wb") as handle:
        handle.write(len(raw).to_bytes(8, "little") + raw)
        handle.truncate(8 + len(raw) + offset)


QWEN3_MOE = {
    "model_type": "qwen3_moe",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 64,
    "vocab_size": 256,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "norm_topk_prob": True,
    "torch_dtype": "bfloat16",
}
QWEN3_5_MOE = {
    "model_type": "qwen3_5_moe",
    "text_config": {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 256,
        "max_position_embeddings": 4096,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "linear_conv_kernel_dim": 4,
        "full_attention_interval": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
    },
}
GPT_OSS = {
    "model_type": "gpt_oss",
    "num_hidden_layers": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 128,
    "head_dim": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}
GEMMA4 = {
    "model_type": "gemma4",
    "vocab_size": 256,
    "text_config": {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "intermediate_size": 128,
        "hidden_size_per_layer_input": 0,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_global_key_value_heads": 1,
        "head_dim": 32,
        "global_head_dim": 64,
        "num_kv_shared_layers": 0,
        "sliding_window": 16,
        "max_position_embeddings": 4096,
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "num_experts": 8,
        "top_k_experts": 2,
        "moe_intermediate_size": 64,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
}
DEEPSEEK_V4 = {
    "model_type": "deepseek_v4",
    "vocab_size": 256,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "qk_rope_head_dim": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "sliding_window": 16,
    "compress_ratios": [0, 4, 128, 4],
    "index_head_dim": 32,
    "max_position_embeddings": 4096,
}
FAMILIES = {c["model_type"]: c for c in (QWEN3_MOE, QWEN3_5_MOE, GPT_OSS, GEMMA4, DEEPSEEK_V4)}
STACKED_BLOCK = {
    "qwen3_moe": "model.layers.{}.mlp.switch_mlp",
    "qwen3_5_moe": "language_model.model.layers.{}.mlp.switch_mlp",
    "gpt_oss": "model.layers.{}.mlp.experts",
    "gemma4": "language_model.model.layers.{}.experts.switch_glu",
    "deepseek_v4": "model.layers.{}.mlp.switch_mlp",
}


def _sizes(config: dict) -> tuple[int, int, int, int]:
    text = config.get("text_config", config)
    experts = text.get("num_experts") or text.get("num_local_experts") or text.get("n_routed_experts")
    width = text.get("moe_intermediate_size") or text["intermediate_size"]
    return text["num_hidden_layers"], experts, text["hidden_size"], width


def stacked_tensors(config: dict, bits: int | None, group_size: int = 64) -> dict:
    """Axis-0 expert tensors in MLX names; affine if `bits`, else bf16."""
    layers, experts, hidden, width = _sizes(config)
    tensors = {}
    for layer in range(layers):
        for projection, (rows, columns) in {
            "gate_proj": (width, hidden),
            "up_proj": (width, hidden),
            "down_proj": (hidden, width),
        }.items():
            name = STACKED_BLOCK[config["model_type"]].format(layer) + "." + projection
            if bits is None:
                tensors[f"{name}.weight"] = ("BF16", (experts, rows, columns))
            else:
                tensors[f"{name}.weight"] = ("U32", (experts, rows, columns * bits // 32))
                for component in ("scales", "biases"):
                    tensors[f"{name}.{component}"] = ("BF16", (experts, rows, columns // group_size))
            if config["model_type"] == "gpt_oss":
                tensors[f"{name}.bias"] = ("BF16", (experts, rows))
    return tensors


def per_expert_tensors(config: dict) -> dict:
    """Raw names of qwen3_moe, one bf16 tensor per expert."""
    layers, experts, hidden, width = _sizes(config)
    return {
        f"model.layers.{layer}.mlp.experts.{expert}.{projection}.weight": (
            "BF16",
            (hidden, width) if projection == "down_proj" else (width, hidden),
        )
        for layer in range(layers)
        for expert in range(experts)
        for projection in ("gate_proj", "up_proj", "down_proj")
    }


def other_tensors(config: dict) -> dict:
    """Everything but routed experts, in bf16."""
    fields = ConfigFields(config, "config.json")
    adapter = adapter_for(fields)
    text = adapter.text_config(fields)
    tensors = model_tensors(adapter.model_type, fields, text, adapter.moe_shape(fields))
    return {name: ("BF16", extents) for name, extents in tensors}


class CheckpointMaker:
    """Writes pretended checkpoints below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(
        self,
        config: dict,
        tensors: Tensors | None = None,
        *,
        name: str = "checkpoint",
        files: Iterable[str] = ("tokenizer.json",),
    ) -> Path:
        directory = self.root / name
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps(config))
        if tensors is not None:
            write_safetensors(directory / "model.safetensors", tensors)
        for file in files:
            (directory / file).write_text('{"model": {}}')
        return directory


@pytest.fixture
def families() -> dict[str, dict]:
    return json.loads(json.dumps(FAMILIES))


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> CheckpointMaker:
    return CheckpointMaker(tmp_path)


@pytest.fixture
def write_tensors() -> Callable[[Path, Tensors], None]:
    return write_safetensors


@pytest.fixture
def stacked() -> Callable[..., dict]:
    return lambda config, bits=None, group_size=64: {
        **other_tensors(config),
        **stacked_tensors(config, bits, group_size),
    }


@pytest.fixture
def per_expert() -> Callable[[dict], dict]:
    return lambda config: {**other_tensors(config), **per_expert_tensors(config)}


class StandIn(ThreadingHTTPServer):
    """A local web server that answers from `pages` and keeps what it was asked in `requests`.

    A page is (status, headers, body). A Range header is honoured unless `ranges` is False.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.ranges = True
        self.before_body: Callable[[], object] = lambda: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, path: str, body: bytes, status: int = 200, **headers: str) -> None:
        self.pages[path] = (status, {k.replace("_", "-"): v for k, v in headers.items()}, body)


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers.items())))
        status, headers, body = self.server.pages.get(self.path, (404, {}, b"nothing here"))
        asked = self.headers.get("Range")
        if asked and status == 200 and self.server.ranges:
            first, last = (int(part) for part in asked.removeprefix("bytes=").split("-"))
            headers = headers | {"Content-Range": f"bytes {first}-{last}/{len(body)}"}
            status, body = 206, body[first : last + 1]
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.server.before_body()
            self.wfile.write(body)
        except OSError:
            pass  # the client gave up, which some tests want

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
