"""Write a network as a Hugging Face checkpoint: bfloat16, a tensor per expert and projection, in shards.

Owns the names and the configuration of the `qwen3_moe` architecture. The tokenizer's files are copied
beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from network import Network, Shape
from safetensors.torch import save_file
from tokenizers import Tokenizer

ATTENTION = {
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "o_proj",
    "q_norm": "q_norm",
    "k_norm": "k_norm",
}


def tensors(network: Network) -> Iterator[tuple[str, torch.Tensor]]:
    """(Hugging Face name, float32 tensor) of every weight."""
    yield "model.embed_tokens.weight", network.embedding
    yield "model.norm.weight", network.norm
    width = network.shape.width
    for index, block in enumerate(network.blocks):
        layer = f"model.layers.{index}."
        yield layer + "input_layernorm.weight", block.norm1
        yield layer + "post_attention_layernorm.weight", block.norm2
        for ours, theirs in ATTENTION.items():
            yield f"{layer}self_attn.{theirs}.weight", getattr(block, ours)
        yield layer + "mlp.gate.weight", block.router
        for expert in range(network.shape.experts):
            place = f"{layer}mlp.experts.{expert}."
            yield place + "gate_proj.weight", block.gate_up[expert, :width]
            yield place + "up_proj.weight", block.gate_up[expert, width:]
            yield place + "down_proj.weight", block.down[expert]


def configuration(shape: Shape, tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json."""
    end, stop = (tokenizer.token_to_id(text) for text in ("<|endoftext|>", "<|im_end|>"))
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": end,
        "decoder_sparse_step": 1,
        "eos_token_id": [stop, end],
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.width * shape.active,
        "max_position_embeddings": shape.context,
        "mlp_only_layers": [],
        "moe_intermediate_size": shape.width,
        "norm_topk_prob": True,
        "num_attention_heads": shape.heads,
        "num_experts": shape.experts,
        "num_experts_per_tok": shape.active,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.key_heads,
        "output_router_logits": False,
        "pad_token_id": end,
        "rms_norm_eps": shape.epsilon,
        "rope_scaling": None,
        "rope_theta": shape.theta,
        "router_aux_loss_coef": 0.0,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocabulary,
    }


def generation(tokenizer: Tokenizer) -> dict[str, Any]:
    """generation_config.json; a model this small repeats itself when greedy, so sampling is the default."""
    end, stop = (tokenizer.token_to_id(text) for text in ("<|endoftext|>", "<|im_end|>"))
    return {
        "do_sample": True,
        "eos_token_id": [stop, end],
        "pad_token_id": end,
        "temperature": 0.7,
        "top_p": 0.95,
    }


def write(network: Network, tokenizer_folder: Path, out: Path, shard_bytes: int = 14_000_000) -> int:
    """Write the checkpoint to `out`; returns the number of shards."""
    out.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = total = 0
    for name, tensor in tensors(network):
        value = tensor.detach().to(torch.bfloat16).cpu().contiguous().clone()
        if size + value.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = value
        size += value.nbytes
        total += value.nbytes
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, str(out / file), metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    documents = {
        "model.safetensors.index.json": {"metadata": {"total_size": total}, "weight_map": places},
        "config.json": configuration(network.shape, tokenizer),
        "generation_config.json": generation(tokenizer),
    }
    for file, document in documents.items():
        (out / file).write_text(json.dumps(document, indent=1) + "\n")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (out / file).write_bytes((tokenizer_folder / file).read_bytes())
    return len(shards)
