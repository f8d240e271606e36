"""Owns mach-store's environment variables: the one place where this package reads them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mach.preflight.memory_plan import SCRATCH_EXPERTS, TRANSIENT_MIN_TOKENS
from mach_store.errors import SettingError
from mach_store.eviction import DEFAULT_POLICY, POLICIES

FALLBACK_POLICIES = ("fail-fast", "diagnostic-python")
DECODE_RESIDENCY_WORDS = ("pin", "reclaim")
"""What `LME_DECODE_RESIDENCY` may ask for, see `StoreSettings.decode_residency`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """Knobs of residency and reading.

    Attributes:
        use_gather_dispatch: `LME_USE_GATHER_DISPATCH`; False selects the slot-by-slot reference.
        in_graph_dispatch: `LME_IN_GRAPH_DISPATCH`; passes find and read their experts by themselves, where
            native kernels compute; False stops for the host in every layer.
        async_prefetch: `LME_ASYNC_PREFETCH`; passes in the graph read experts that the next layer will
            probably need, while the disk is idle; None, `auto`, does so where reads go past the page cache.
        fallback_policy: `LME_FALLBACK_POLICY`; what happens when the native reader is missing.
        read_threads: `LME_READ_THREADS`; threads of one batched read, 1 to 64.
        direct_io: `LME_DIRECT_IO`; bypass the page cache (O_DIRECT, F_NOCACHE); None, `auto`, is for
            `direct_choice` to say.
        memory_pressure: `LME_MEMORY_PRESSURE`; the bank shrinks when the machine's memory runs short.
        verify_reads: `LME_VERIFY_READS`; check every record's checksum as it is read.
        transient_min_tokens: `LME_TRANSIENT_MIN_TOKENS`; from this many tokens on, a forward pass goes
            expert by expert through the scratch arena and leaves the bank's contents alone.
        scratch_experts: `LME_SCRATCH_EXPERTS`; experts that the scratch arena holds at once.
        scratch_told: whether that variable is set.
        cpu_kernels: `LME_CPU_KERNELS`; compute products in native code where MLX runs on the CPU.
        cpu_threads: `LME_CPU_THREADS`; threads of one such product, 1 to 64; 0 for one per usable CPU.
        bf16_stacked_streaming: `LME_BF16_STACKED_STREAMING`; streaming keeps plain floats in the bank, read
            from slices of stacked tensors.
        eviction_policy: `LME_BANK_EVICTION_POLICY`; who leaves a bank that is full, one of `POLICIES`.
        decode_residency: `LME_DECODE_RESIDENCY`; words of DECODE_RESIDENCY_WORDS with commas between them, or
            `off`. `pin`: the hottest experts are given up last (`mach_decode.hot_pins`). `reclaim`: the
            scratch arena's memory is given back while tokens are decoded.
    """

    use_gather_dispatch: bool = True
    in_graph_dispatch: bool = True
    async_prefetch: bool | None = None
    fallback_policy: str = "fail-fast"
    read_threads: int = 4
    direct_io: bool | None = None
    memory_pressure: bool = True
    verify_reads: bool = True
    transient_min_tokens: int = TRANSIENT_MIN_TOKENS
    scratch_experts: int = SCRATCH_EXPERTS
    scratch_told: bool = False
    cpu_kernels: bool = True
    cpu_threads: int = 0
    bf16_stacked_streaming: bool = False
    eviction_policy: str = DEFAULT_POLICY
    decode_residency: frozenset[str] = frozenset()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> StoreSettings:
        """The settings that `environment` asks for.

        Raises:
            SettingError: a variable holds a value that is not allowed; the message names it.
        """
        default = cls()
        return cls(
            use_gather_dispatch=_flag(environment, "LME_USE_GATHER_DISPATCH", default.use_gather_dispatch),
            in_graph_dispatch=_flag(environment, "LME_IN_GRAPH_DISPATCH", default.in_graph_dispatch),
            async_prefetch=_auto_flag(environment, "LME_ASYNC_PREFETCH"),
            fallback_policy=_choice(
                environment, "LME_FALLBACK_POLICY", default.fallback_policy, FALLBACK_POLICIES
            ),
            read_threads=_integer(environment, "LME_READ_THREADS", default.read_threads, 1, 64),
            direct_io=_auto_flag(environment, "LME_DIRECT_IO"),
            memory_pressure=_flag(environment, "LME_MEMORY_PRESSURE", default.memory_pressure),
            verify_reads=_flag(environment, "LME_VERIFY_READS", default.verify_reads),
            transient_min_tokens=_integer(
                environment, "LME_TRANSIENT_MIN_TOKENS", default.transient_min_tokens, 2, 1 << 20
            ),
            scratch_experts=_integer(environment, "LME_SCRATCH_EXPERTS", default.scratch_experts, 1, 4096),
            scratch_told="LME_SCRATCH_EXPERTS" in environment,
            cpu_kernels=_flag(environment, "LME_CPU_KERNELS", default.cpu_kernels),
            cpu_threads=_integer(environment, "LME_CPU_THREADS", default.cpu_threads, 0, 64),
            bf16_stacked_streaming=_flag(
                environment, "LME_BF16_STACKED_STREAMING", default.bf16_stacked_streaming
            ),
            eviction_policy=_choice(
                environment, "LME_BANK_EVICTION_POLICY", default.eviction_policy, POLICIES
            ),
            decode_residency=_words(environment, "LME_DECODE_RESIDENCY", DECODE_RESIDENCY_WORDS),
        )


def _choice(environment: Mapping[str, str], name: str, default: str, choices: Sequence[str]) -> str:
    value = environment.get(name, default)
    if value not in choices:
        raise SettingError(name, value, " or ".join(choices))
    return value


def _words(environment: Mapping[str, str], name: str, words: Sequence[str]) -> frozenset[str]:
    value = environment.get(name, "off")
    if value == "off":
        return frozenset()
    asked = [word.strip() for word in value.split(",")]
    if not set(asked) <= set(words):
        raise SettingError(name, value, f"off, or with commas between them: {', '.join(words)}")
    return frozenset(asked)


def _flag(environment: Mapping[str, str], name: str, default: bool) -> bool:
    value = environment.get(name)
    if value is None:
        return default
    if value not in ("0", "1"):
        raise SettingError(name, value, "0 or 1")
    return value == "1"


def _auto_flag(environment: Mapping[str, str], name: str) -> bool | None:
    value = environment.get(name, "auto")
    if value not in ("0", "1", "auto"):
        raise SettingError(name, value, "0, 1 or auto")
    return None if value == "auto" else value == "1"


def _integer(environment: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    value = environment.get(name)
    if value is None:
        return default
    digits = value.isascii() and value.isdigit() and len(value) <= 9
    if not digits or not least <= int(value) <= most:
        raise SettingError(name, value, f"an integer from {least} to {most}")
    return int(value)
