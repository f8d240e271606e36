"""Owns what a routing trace says of the loaded model that it is recorded from."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version

from mach.io.inspection import inspect_checkpoint
from mach_decode.loaded_model import LoadedModel
from mach_store.bank_cache import BankCache
from mach_store.checkpoint_fingerprint import checkpoint_fingerprint
from mach_store.errors import RoutesUnseenError
from mach_store.resident_cache import ResidentStackedExpertCache
from mach_store.trace.trace_header import TraceHeader, TraceRun

_DISTRIBUTIONS = ("mach-decode", "mach-store", "mlx", "mlx-lm")


def trace_header(loaded: LoadedModel, recorded_by: str) -> TraceHeader:
    """The header of a trace that is recorded from now on.

    Args:
        loaded: the model.
        recorded_by: the command.

    Raises:
        RoutesUnseenError: the experts are the model's own.
    """
    store, settings = loaded.store, loaded.settings
    policy, narrow, bank_slots = "", list[bool](), list[int]()
    if isinstance(store, BankCache):
        schemas, experts = store.source.schemas, store.source.num_experts
        sizes = {layer: store.form.slot_bytes(schema) for layer, schema in schemas.items()}
        pools = {id(bank.pool): bank.pool for _, bank in sorted(store.layers.items())}.values()
        policy = store.policy
        narrow = [pool.narrow for pool in pools]
        bank_slots = [pool.slots for pool in pools]
    elif isinstance(store, ResidentStackedExpertCache):
        schemas, experts = store.schemas, store.num_experts
        sizes = {layer: store.layers[layer].slot_bytes for layer in schemas}
    else:
        raise RoutesUnseenError(
            "routes are recorded with --streaming or --no-streaming: here the experts are mlx-lm's own"
        )
    layers = sorted(schemas)
    numbers = {schema: number for number, schema in enumerate(dict.fromkeys(schemas[i] for i in layers))}
    assert loaded.adapter is not None, "experts are swapped for known architectures alone"
    return TraceHeader(
        architecture=loaded.adapter.model_type,
        checkpoint=loaded.name,
        fingerprint=checkpoint_fingerprint(loaded.directory),
        layers=layers,
        experts=experts,
        top_k=inspect_checkpoint(loaded.directory).shape.top_k,
        record_bytes=[schemas[layer].nbytes for layer in layers],
        slot_bytes=[sizes[layer] for layer in layers],
        pools=[numbers[schemas[layer]] for layer in layers],
        run=TraceRun(
            recorded_by=recorded_by,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            versions={name: version(name) for name in _DISTRIBUTIONS},
            residency=store.residency,
            dispatch=loaded.dispatch,
            policy=policy,
            bank_slots=bank_slots,
            transient_min_tokens=settings.transient_min_tokens,
            scratch_experts=store.scratch_experts
            if isinstance(store, BankCache)
            else settings.scratch_experts,
            narrow=narrow,
        ),
    )
