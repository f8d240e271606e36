"""Owns what becomes of config.json: the number of experts, and how the engine's tensors are packed.

Everything else keeps its value and its place. The quantisation is written in MLX's dialect, which the loader
reads: a global scheme and overrides per module path.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mach.io.config_file import ConfigFields
from mach.io.inspection import CheckpointInspection
from mach.io.quantization import PROJECTIONS, QuantScheme, routed_quantization
from mach.io.sidecar_layout import RecordSchema
from mach_store.errors import PruneError

COUNT_FIELDS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Every spelling of the number of routed experts; a config may hold several."""

_Schemes = dict[str, QuantScheme | None]


def engine_config(
    inspection: CheckpointInspection, schemas: Mapping[int, RecordSchema], num_experts: int
) -> dict[str, Any]:
    """The engine checkpoint's config.json; equal to the source's where nothing changes.

    Args:
        inspection: of the source.
        schemas: how the sidecar's records are packed, by layer.
        num_experts: experts that each layer keeps.

    Raises:
        PruneError: two spellings of the number of experts contradict each other.
        ConfigError: the source's quantisation is malformed.
    """
    config: dict[str, Any] = copy.deepcopy(inspection.config.values)
    _set_counts(config, inspection, num_experts)
    schemes: _Schemes = {}
    for layer, schema in sorted(schemas.items()):
        for projection, q in zip(PROJECTIONS, schema.quantization, strict=True):
            scheme = None if q is None else QuantScheme(q.mode, q.bits, q.group_size)
            schemes[inspection.expert_module(layer, projection)] = scheme
    _set_quantization(config, inspection, schemes)
    return config


def _set_counts(config: dict[str, Any], inspection: CheckpointInspection, num_experts: int) -> None:
    old = inspection.shape.num_experts
    nested = config.get("text_config")
    for fields in (config, nested) if isinstance(nested, dict) else (config,):
        for name in COUNT_FIELDS:
            value = fields.get(name)
            if value is None or num_experts == old:
                continue
            if value != old:
                raise PruneError(
                    f"{inspection.config.path}: {name} is {value!r}, but the layers have {old} experts: "
                    "correct it, so that it is clear what the pruned number replaces"
                )
            fields[name] = num_experts


def _set_quantization(config: dict[str, Any], inspection: CheckpointInspection, schemes: _Schemes) -> None:
    dialects = [
        fields[name]
        for fields in (config, config.get("text_config"))
        if isinstance(fields, dict)
        for name in ("quantization", "quantization_config")
        if isinstance(fields.get(name), dict) and "quant_method" not in fields[name]
    ]
    if dialects:
        _override(dialects, config, inspection, schemes)
        return
    for fields in (config, config.get("text_config")):
        if isinstance(fields, dict):
            fields.pop("quantization_config", None)
    found = Counter(scheme for scheme in schemes.values() if scheme is not None)
    if found:
        main = found.most_common(1)[0][0]
        config["quantization"] = _fields(main) | {
            path: _fields(scheme) for path, scheme in schemes.items() if scheme != main
        }


def _override(
    dialects: list[dict[str, Any]],
    config: dict[str, Any],
    inspection: CheckpointInspection,
    schemes: _Schemes,
) -> None:
    """Say of each projection that is packed otherwise than MLX's `quantization` states how it is."""
    fields = ConfigFields(config, inspection.config.path)
    stated = routed_quantization(inspection.adapter, fields, inspection.shape, None)
    for path, scheme in schemes.items():
        if stated.scheme_for(path) != scheme:
            for dialect in dialects:
                dialect[path] = _fields(scheme)


def _fields(scheme: QuantScheme | None) -> Any:
    if scheme is None:
        return False
    return {"group_size": scheme.group_size, "bits": scheme.bits, "mode": scheme.mode}
