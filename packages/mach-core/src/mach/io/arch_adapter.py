"""Owns what an architecture's adapter is: the facts that detection, preflight, loader and server share.

Data and small pure functions; the five adapters themselves stand in `arch_registry`. NamedTuples rather than
dataclasses, whose import alone takes longer than the rest of `import mach`'s own modules.
"""

from __future__ import annotations

from typing import NamedTuple

from mach.io.config_file import ConfigFields
from mach.io.raw_form import RawForm

MAX_LAYERS = 4096
MAX_EXPERTS = 65536
MAX_WIDTH = 1 << 20


class ExpertNames(NamedTuple):
    """How a family names its tensors: routed experts in MLX and raw forms, and everything else.

    Attributes:
        switch_block: MLX module path of one layer's expert block, a template over `{layer}`; its children are
            gate_proj, up_proj and down_proj, whose parameters are weight, scales, biases and bias.
        switch_block_aliases: other spellings of that path in files, which mlx-lm renames on loading.
        raw: the forms of published checkpoints, the likelier first.
        others: templates of all other parameters, in raw and MLX spelling; see `family_names`.
    """

    switch_block: str
    switch_block_aliases: tuple[str, ...]
    raw: tuple[RawForm, ...]
    others: tuple[str, ...]


class ShapeFields(NamedTuple):
    """Which config fields say how large the routed part is; None where a family has no such field.

    Attributes:
        experts: spellings of the number of routed experts per layer.
        top_k: spellings of the number of experts that a token is routed to.
        expert_width: spellings of one expert's intermediate size.
        sparse_step: every n-th layer is MoE.
        dense_layers: list of layers that are dense although the step would make them MoE.
        first_dense: number of leading layers that are dense.
        enabled: boolean without which the family is dense.
    """

    experts: tuple[str, ...] = ("num_experts",)
    top_k: tuple[str, ...] = ("num_experts_per_tok",)
    expert_width: tuple[str, ...] = ("moe_intermediate_size",)
    sparse_step: str | None = None
    dense_layers: str | None = None
    first_dense: str | None = None
    enabled: str | None = None


class MoeShape(NamedTuple):
    """The routed part of one checkpoint, from its config.json, validated.

    Attributes:
        num_layers: decoder layers, MoE or not.
        num_experts: routed experts of each MoE layer; 0 for a dense model.
        top_k: experts per token; 0 for a dense model.
        hidden_size: model width.
        expert_width: one expert's intermediate size; 0 for a dense model.
        moe_layers: indices of the layers that have routed experts, ascending.
    """

    num_layers: int
    num_experts: int
    top_k: int
    hidden_size: int
    expert_width: int
    moe_layers: tuple[int, ...]


class MoeArchAdapter(NamedTuple):
    """One registered architecture.

    Attributes:
        model_type: config.json's `model_type`, and the registry's key.
        swiglu_variant: `plain_swiglu`, `silu_limited` or `plain_geglu`.
        stacked_supported: whether axis-0 stacked checkpoints load directly.
        has_expert_bias: whether each expert's projections have a bias.
        text_config_wrapped: whether the language model's fields stand under `text_config`.
        text_config_optional: whether the fields may stand at the top level instead.
        implementation: module with the family's Model and ModelArgs, or None if this version has none.
        default_mode: routed-expert quantisation assumed where a checkpoint is silent.
        default_bits: its bits per weight.
        default_group_size: its weights per scale.
        kv_cache_kind: `standard`, `hybrid_gdn`, `compressed` or `rotating`.
        specdec_kind: `specdec_v7`, `mtp_eagle3` or None.
        native_tool_dialect: the tool-call format that the server parses and constrains natively, or None.
        names: tensor naming.
        shape_fields: config fields of the routed part.
        unused_prefixes: tensors so named, after an optional `model.`, are in checkpoints but not loaded.
    """

    model_type: str
    swiglu_variant: str
    stacked_supported: bool
    has_expert_bias: bool
    text_config_wrapped: bool
    text_config_optional: bool
    implementation: str | None
    default_mode: str
    default_bits: int
    default_group_size: int
    kv_cache_kind: str
    specdec_kind: str | None
    native_tool_dialect: str | None
    names: ExpertNames
    shape_fields: ShapeFields
    unused_prefixes: tuple[str, ...] = ()

    @property
    def model_module(self) -> str:
        """Module that gives `Model` and `ModelArgs` of this architecture."""
        return f"mach.models.{self.model_type}"

    def switch_block(self, layer: int) -> str:
        """MLX module path of `layer`'s expert block."""
        return self.names.switch_block.format(layer=layer)

    def is_unused(self, tensor: str) -> bool:
        """Whether a tensor of a checkpoint is one that the engine does not load."""
        return tensor.removeprefix("model.").startswith(self.unused_prefixes)

    def text_config(self, config: ConfigFields) -> ConfigFields:
        """The language model's fields of a config.json.

        Raises:
            ConfigError: the family nests them under `text_config` and there is none.
        """
        if not self.text_config_wrapped:
            return config
        nested = config.object("text_config")
        if nested is None:
            if self.text_config_optional:
                return config
            raise config.error(
                "text_config", f"is missing; {self.model_type} keeps its language model's fields there"
            )
        return nested

    def moe_shape(self, config: ConfigFields) -> MoeShape:
        """The routed part that a whole config.json describes.

        Raises:
            ConfigError: a field is missing, of a wrong type or outside its range.
        """
        text, fields = self.text_config(config), self.shape_fields
        num_layers = text.integer("num_hidden_layers", low=1, high=MAX_LAYERS)
        hidden_size = text.integer("hidden_size", low=1, high=MAX_WIDTH)
        enabled = fields.enabled is None or text.boolean(fields.enabled, False)
        num_experts = text.integer(*fields.experts, low=0, high=MAX_EXPERTS, default=0) if enabled else 0
        if num_experts == 0:
            return MoeShape(num_layers, 0, 0, hidden_size, 0, ())
        return MoeShape(
            num_layers=num_layers,
            num_experts=num_experts,
            top_k=text.integer(*fields.top_k, low=1, high=num_experts),
            hidden_size=hidden_size,
            expert_width=text.integer(*fields.expert_width, low=1, high=MAX_WIDTH),
            moe_layers=_moe_layers(text, fields, num_layers),
        )


def _moe_layers(text: ConfigFields, fields: ShapeFields, num_layers: int) -> tuple[int, ...]:
    step = 1
    if fields.sparse_step is not None:
        step = text.integer(fields.sparse_step, low=1, high=MAX_LAYERS, default=1)
    first = 0
    if fields.first_dense is not None:
        first = text.integer(fields.first_dense, low=0, high=num_layers, default=0)
    dense: frozenset[int] = frozenset()
    if fields.dense_layers is not None:
        dense = frozenset(text.integers(fields.dense_layers, 0, num_layers - 1, num_layers) or ())
    return tuple(i for i in range(first, num_layers) if (i + 1) % step == 0 and i not in dense)
