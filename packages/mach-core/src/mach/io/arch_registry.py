"""Owns the table of supported architectures and the one front door that matches a checkpoint against it.

mach-archs, `GET /v1/capabilities`, `mach check`, the loader and the server all ask here; none of them keeps
a list of its own. Tensor names follow mlx-lm 0.32 (MLX side) and the published checkpoints (raw side).
"""

from __future__ import annotations

import os
from typing import Any

from mach.errors import UnknownArchitectureError
from mach.io import family_names
from mach.io.arch_adapter import ExpertNames, MoeArchAdapter, ShapeFields
from mach.io.config_file import ConfigFields, read_config

__all__ = [
    "REGISTRY",
    "MoeArchAdapter",
    "adapter_for",
    "arch_summary",
    "continuous_batching_for",
    "detect_arch",
    "registry_summary",
]

REGISTRY: dict[str, MoeArchAdapter] = {
    adapter.model_type: adapter
    for adapter in (
        MoeArchAdapter(
            model_type="deepseek_v4",
            swiglu_variant="silu_limited",
            stacked_supported=False,
            has_expert_bias=False,
            text_config_wrapped=False,
            text_config_optional=False,
            implementation="mach_store.deepseek_v4",
            default_mode="affine",
            default_bits=4,
            default_group_size=64,
            kv_cache_kind="compressed",
            specdec_kind="mtp_eagle3",
            native_tool_dialect=None,
            names=ExpertNames(
                switch_block="model.layers.{layer}.mlp.switch_mlp",
                switch_block_aliases=(
                    "model.layers.{layer}.mlp.experts.switch_mlp",
                    "model.layers.{layer}.ffn.switch_mlp",
                ),
                raw=family_names.DEEPSEEK_V4_RAW,
                others=family_names.DEEPSEEK_V4_OTHERS,
            ),
            # No layer is dense: an ancestor's first_k_dense_replace, in some configs, means nothing.
            shape_fields=ShapeFields(experts=("n_routed_experts", "num_local_experts")),
            unused_prefixes=("mtp.",),
        ),
        MoeArchAdapter(
            model_type="qwen3_5_moe",
            swiglu_variant="plain_swiglu",
            stacked_supported=True,
            has_expert_bias=False,
            text_config_wrapped=True,
            text_config_optional=True,
            implementation="mlx_lm.models.qwen3_5_moe",
            default_mode="affine",
            default_bits=4,
            default_group_size=64,
            kv_cache_kind="hybrid_gdn",
            specdec_kind="specdec_v7",
            native_tool_dialect="qwen",
            names=ExpertNames(
                switch_block="language_model.model.layers.{layer}.mlp.switch_mlp",
                switch_block_aliases=(
                    "model.layers.{layer}.mlp.switch_mlp",
                    "model.language_model.layers.{layer}.mlp.switch_mlp",
                ),
                raw=family_names.QWEN3_5_MOE_RAW,
                others=family_names.QWEN3_5_MOE_OTHERS,
            ),
            shape_fields=ShapeFields(),
            unused_prefixes=("mtp.", "language_model.mtp.", "vision_tower", "visual."),
        ),
        MoeArchAdapter(
            model_type="qwen3_moe",
            swiglu_variant="plain_swiglu",
            stacked_supported=True,
            has_expert_bias=False,
            text_config_wrapped=False,
            text_config_optional=False,
            implementation="mlx_lm.models.qwen3_moe",
            default_mode="affine",
            default_bits=4,
            default_group_size=64,
            kv_cache_kind="standard",
            specdec_kind="specdec_v7",
            native_tool_dialect="qwen",
            names=ExpertNames(
                switch_block="model.layers.{layer}.mlp.switch_mlp",
                switch_block_aliases=(),
                raw=family_names.QWEN3_MOE_RAW,
                others=family_names.QWEN3_MOE_OTHERS,
            ),
            shape_fields=ShapeFields(
                experts=("num_experts", "num_local_experts"),
                sparse_step="decoder_sparse_step",
                dense_layers="mlp_only_layers",
            ),
        ),
        MoeArchAdapter(
            model_type="gpt_oss",
            swiglu_variant="silu_limited",
            stacked_supported=True,
            has_expert_bias=True,
            text_config_wrapped=False,
            text_config_optional=False,
            implementation="mlx_lm.models.gpt_oss",
            default_mode="mxfp4",
            default_bits=4,
            default_group_size=32,
            kv_cache_kind="rotating",
            specdec_kind=None,
            native_tool_dialect=None,
            names=ExpertNames(
                switch_block="model.layers.{layer}.mlp.experts",
                switch_block_aliases=(),
                raw=family_names.GPT_OSS_RAW,
                others=family_names.GPT_OSS_OTHERS,
            ),
            shape_fields=ShapeFields(
                experts=("num_local_experts", "num_experts"),
                top_k=("num_experts_per_tok", "experts_per_token"),
                expert_width=("intermediate_size",),
            ),
        ),
        MoeArchAdapter(
            model_type="gemma4",
            swiglu_variant="plain_geglu",
            stacked_supported=True,
            has_expert_bias=False,
            text_config_wrapped=True,
            text_config_optional=False,
            implementation="mlx_lm.models.gemma4",
            default_mode="affine",
            default_bits=4,
            default_group_size=64,
            kv_cache_kind="rotating",
            specdec_kind=None,
            native_tool_dialect=None,
            names=ExpertNames(
                switch_block="language_model.model.layers.{layer}.experts.switch_glu",
                switch_block_aliases=("model.language_model.layers.{layer}.experts.switch_glu",),
                raw=family_names.GEMMA4_RAW,
                others=family_names.GEMMA4_OTHERS,
            ),
            shape_fields=ShapeFields(
                top_k=("top_k_experts", "num_experts_per_tok"), enabled="enable_moe_block"
            ),
            unused_prefixes=(
                "vision_tower",
                "multi_modal_projector",
                "audio_tower",
                "embed_audio",
                "embed_vision",
                "vision_embedder",
            ),
        ),
    )
}


def detect_arch(path: str | os.PathLike[str]) -> str:
    """The registry key of the checkpoint at `path`: its config.json, or the directory that holds it.

    Raises:
        CheckpointNotFoundError: there is no config.json.
        UnknownArchitectureError: its `model_type` is not in the registry.
        ConfigError: it cannot be read, or has no `model_type`.
    """
    return adapter_for(read_config(path)).model_type


def adapter_for(config: ConfigFields) -> MoeArchAdapter:
    """The adapter that a config.json's `model_type` asks for; raises as `detect_arch`."""
    model_type = config.text("model_type")
    adapter = REGISTRY.get(model_type)
    if adapter is None:
        raise UnknownArchitectureError(
            f"{config.path}: model_type {model_type[:100]!r} is not supported; mach-archs lists what is: "
            f"{', '.join(REGISTRY)}. If mlx-lm has a model for it, --backend openai runs that as it is",
            path=config.path,
            field="model_type",
            model_type=model_type,
        )
    return adapter


def continuous_batching_for(kv_cache_kind: str) -> str:
    """Whether caches of this kind can be batched: `ok`, `blocked`, or `unknown` until seen at load.

    A rotating cache batches only when it keeps no leading tokens, which the config does not say.
    """
    return {"standard": "ok", "hybrid_gdn": "ok", "compressed": "blocked"}.get(kv_cache_kind, "unknown")


def arch_summary(adapter: MoeArchAdapter) -> dict[str, Any]:
    """One architecture's static facts, ready for JSON: the `arch` block of `GET /v1/capabilities`."""
    return {
        "model_type": adapter.model_type,
        "swiglu_variant": adapter.swiglu_variant,
        "stacked_supported": adapter.stacked_supported,
        "has_expert_bias": adapter.has_expert_bias,
        "text_config_wrapped": adapter.text_config_wrapped,
        "model_module": adapter.model_module,
        "default_bits": adapter.default_bits,
        "default_group_size": adapter.default_group_size,
        "kv_cache_kind": adapter.kv_cache_kind,
        "specdec_kind": adapter.specdec_kind,
        "continuous_batching": continuous_batching_for(adapter.kv_cache_kind),
    }


def registry_summary() -> list[dict[str, Any]]:
    """`arch_summary` of every architecture, in the registry's order."""
    return [arch_summary(adapter) for adapter in REGISTRY.values()]
