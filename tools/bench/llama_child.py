"""Writes a random Q4_0 model and runs llama.cpp on it, as its standard input asks; for bench_llama.py.

    LLAMA_PYTHON tools/bench/llama_child.py CONFIG_JSON FOLDER < commands

Runs in an environment of its own (bench_llama.py says how to make it), so it imports nothing of mach. Each
command, and the load before the first one, is answered with one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

Q4_0 = gguf.GGMLQuantizationType.Q4_0


def main(config: dict[str, Any], folder: Path) -> None:
    """Write the model, load it, obey."""
    path = folder / "model.gguf"
    write_model(config, path)
    model = llama_cpp.Llama(
        str(path),
        n_ctx=config["max_position_embeddings"],
        n_threads=config["threads"],
        n_threads_batch=config["threads"],
        n_batch=512,
        n_ubatch=512,
        verbose=False,
    )
    print(json.dumps({"version": llama_cpp.__version__, "weight_bytes": path.stat().st_size}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(model, **json.loads(line))), flush=True)


def answer(model: llama_cpp.Llama, prompt: int, tokens: int) -> dict[str, float]:
    """Prefill `prompt` tokens but the last, then decode greedily. The weights are random: so is the text."""
    model.reset()
    began = time.perf_counter()
    model.eval(list(range(1, prompt)))
    prefill = time.perf_counter() - began
    token = prompt
    model.eval([token])
    began = time.perf_counter()
    for _ in range(tokens):
        logits = llama_cpp.llama_get_logits(model.ctx)
        token = int(np.ctypeslib.as_array(logits, shape=(model.n_vocab(),)).argmax())
        model.eval([token])
    return {
        "decode_tps": tokens / (time.perf_counter() - began),
        "prefill_tps": (prompt - 1) / prefill if prompt > 1 else 0.0,
    }


def write_model(config: dict[str, Any], path: Path) -> None:
    """A qwen3moe GGUF with the shapes of a config.json, every matrix in Q4_0 but the routers."""
    hidden, layers, experts = config["hidden_size"], config["num_hidden_layers"], config["num_experts"]
    width, head = config["moe_intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    writer = gguf.GGUFWriter(str(path), "qwen3moe")
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(experts)
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(width)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_file_type(2)
    dice = np.random.default_rng(0)

    def packed(name: str, *shape: int) -> None:
        values = dice.standard_normal(shape, dtype=np.float32) * 0.03
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, Q4_0), raw_dtype=Q4_0)

    def ones(name: str, count: int) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(count, np.float32))

    packed("token_embd", config["vocab_size"], hidden)
    ones("output_norm", hidden)
    for layer in range(layers):
        block = f"blk.{layer}"
        ones(f"{block}.attn_norm", hidden)
        ones(f"{block}.ffn_norm", hidden)
        ones(f"{block}.attn_q_norm", head)
        ones(f"{block}.attn_k_norm", head)
        packed(f"{block}.attn_q", queries, hidden)
        packed(f"{block}.attn_k", keys, hidden)
        packed(f"{block}.attn_v", keys, hidden)
        packed(f"{block}.attn_output", hidden, queries)
        router = dice.standard_normal((experts, hidden), dtype=np.float32) * 0.03
        writer.add_tensor(f"{block}.ffn_gate_inp.weight", router)
        packed(f"{block}.ffn_gate_exps", experts, width, hidden)
        packed(f"{block}.ffn_up_exps", experts, width, hidden)
        packed(f"{block}.ffn_down_exps", experts, hidden, width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
