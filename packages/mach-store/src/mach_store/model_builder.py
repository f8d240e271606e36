"""Owns the making of a model whose routed experts live in a store: construct, swap, load everything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import load_model

from mach.errors import MachError
from mach.io.arch_adapter import MoeArchAdapter
from mach.io.config_file import ConfigFields, read_config
from mach.io.inspection import ExpertTensorNames
from mach.io.model_tensors import model_config, unsupported_value
from mach_store.errors import StoreError
from mach_store.load_progress import LoadListener, evaluate_weights, unheard
from mach_store.model_repairs import repair_model, repair_weights, widen_embeddings

SwitchFactory = Callable[[int, nn.Module], nn.Module]
"""(layer, the module to replace) → the module that takes its place."""


def compute_dtype() -> mx.Dtype:
    """The dtype activations have on the default device.

    float32 on the CPU, where MLX's bfloat16 products are about nine times slower and less exact
    (`docs/architecture.md`); bfloat16 elsewhere.
    """
    return mx.float32 if mx.default_device().type == mx.DeviceType.cpu else mx.bfloat16


def build_model(
    directory: Path,
    adapter: MoeArchAdapter,
    moe_layers: Sequence[int],
    factory: SwitchFactory,
    listener: LoadListener = unheard,
) -> tuple[nn.Module, dict[str, Any]]:
    """The family's mlx-lm model with every routed-expert module replaced, other weights loaded.

    Expert modules are replaced before any weight is bound and expert tensors are dropped before the family's
    `sanitize` sees them, so that no expert byte is read.

    Args:
        directory: the checkpoint.
        adapter: its family.
        moe_layers: model indices of the layers that have routed experts.
        factory: makes the replacement of one layer's experts.
        listener: is told how far the reading of weights is.

    Returns:
        The model, evaluated, and its config.

    Raises:
        StoreError: the model has no routed experts where the registry says they are, this version has no
            module for the family, or mlx-lm refuses the weights (missing or unexpected tensors).
    """
    experts = ExpertTensorNames(adapter)
    given = read_config(directory)
    base: Any
    base, arguments, wanted = family_classes(adapter, given)

    class Swapped(base):
        def __init__(self, args: Any) -> None:
            super().__init__(args)
            swap_switch_mlp(self, adapter, moe_layers, factory)

        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            return cast(
                dict[str, mx.array],
                super().sanitize({name: a for name, a in weights.items() if experts.place(name) is None}),
            )

    # What mlx-lm read itself, like end tokens from generation_config.json, stays.
    changed = {name: v for name, v in wanted.items() if given.values.get(name, ...) != v}
    try:
        model, config = load_model(
            directory, lazy=True, model_config=changed, get_model_classes=lambda config: (Swapped, arguments)
        )
    except MachError:
        raise
    except FileNotFoundError as error:
        raise StoreError(
            f"{directory}: has no model*.safetensors with the weights that are no experts: put them back"
        ) from error
    except Exception as error:  # mlx-lm's models raise whatever a strange config makes them stumble over
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise StoreError(f"{directory}: the weights or config.json do not fit the model: {reason}") from error
    if compute_dtype() == mx.float32:
        model.set_dtype(mx.float32)
        widen_embeddings(model)
    evaluate_weights(model, listener)
    return model, config


def family_classes(adapter: MoeArchAdapter, config: ConfigFields) -> tuple[Any, Any, dict[str, Any]]:
    """The classes that make a family's model, and the normalised config to make it from.

    Returns:
        The model's class, mlx-lm's with its faults repaired; the class of its arguments; the config for
        `from_dict` of the latter.

    Raises:
        StoreError: this version has no module for the family, or does not compute what the config asks for.
        ConfigError: a field that the model needs is missing or impossible.
    """
    if adapter.implementation is None:
        raise StoreError(f"{adapter.model_type}: this version of mach has no model for this family yet")
    module = import_module(adapter.implementation)
    base: Any = module.Model
    normalised = model_config(adapter.model_type, config, adapter.text_config(config))
    if problem := unsupported_value(adapter.model_type, normalised):
        raise StoreError(problem)

    class Model(base):
        def __init__(self, args: Any) -> None:
            super().__init__(args)
            repair_model(adapter.model_type, self, normalised.values, compute_dtype())

        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            weights = repair_weights(adapter.model_type, weights, normalised.values)
            return super().sanitize(weights) if hasattr(base, "sanitize") else weights

    # mlx-lm's arguments change the dictionaries that they are made from.
    return Model, module.ModelArgs, deepcopy(normalised.values)


def swap_switch_mlp(
    model: nn.Module, adapter: MoeArchAdapter, moe_layers: Sequence[int], factory: SwitchFactory
) -> None:
    """Replace the routed-expert module of every layer in `moe_layers`.

    Raises:
        StoreError: the module is not where the registry says.
    """
    for layer in moe_layers:
        path = adapter.switch_block(layer)
        *parents, name = path.split(".")
        owner: Any = model
        for part in parents:
            owner = owner[int(part)] if part.isdigit() else getattr(owner, part, None)
            if owner is None:
                break
        if owner is None or not isinstance(getattr(owner, name, None), nn.Module):
            raise StoreError(f"{adapter.model_type}: the model has no routed experts at {path}")
        setattr(owner, name, factory(layer, getattr(owner, name)))
