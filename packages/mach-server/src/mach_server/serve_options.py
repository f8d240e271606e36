"""Owns the flags of `mach-serve`: their names, units and bounds, and what they mean together."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mach.commands.budget_flags import add_budget_flags
from mach.commands.residency_flags import add_residency_flags, refuse_beside_openai
from mach_decode.engine import UNSWAPPED, EngineConfig
from mach_server.access import Access
from mach_server.api_key import VARIABLE, checked_key, key_from_environment
from mach_server.limits import Limits
from mach_server.log_output import LogFormat
from mach_server.origin_guard import checked_host, checked_origin
from mach_server.trace_recording import DEFAULT_MEGABYTES

BACKENDS = ("production", "dflash", "openai")
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080

_LIMITS = Limits()
_MOST_SECONDS = 7 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What one `mach-serve` was asked for.

    Attributes:
        engine: what to load.
        target_only: whether `--target-only` was given.
        host: address to listen on.
        port: TCP port; 0 takes a free one.
        uds: path of a Unix socket to listen on instead, or None.
        api_key: what requests must show, or None.
        cors_origins: origins whose pages may use the server.
        allowed_hosts: names that the Host header may hold.
        limits: bounds.
        log_format: `text` or `json`.
        record_trace: file or directory for a trace of all routes, or None.
        record_trace_bytes: at most so large.
        quiet: whether no progress bar is drawn while loading.
    """

    engine: EngineConfig
    target_only: bool
    host: str
    port: int
    uds: str | None
    api_key: str | None
    cors_origins: tuple[str, ...]
    allowed_hosts: frozenset[str]
    limits: Limits
    log_format: LogFormat
    record_trace: str | None
    record_trace_bytes: int
    quiet: bool

    def access(self, *, loopback: bool, is_unix: bool) -> Access:
        """The rules for an address. Args: loopback: only this machine reaches it; is_unix: what it is."""
        guarded = loopback and not is_unix and self.api_key is None
        hosts = self.allowed_hosts | {self.host.lower()}
        return Access(
            api_key=self.api_key,
            cors_origins=self.cors_origins,
            trusted_hosts=hosts if guarded else None,
        )


def parse(arguments: Sequence[str]) -> ServeOptions:
    """The options in `arguments` and the environment.

    Raises:
        SystemExit: they cannot be; argparse has printed why, with the flag's name.
        SettingError: `MACH_API_KEY` cannot be.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.model is None) == (options.checkpoint is None):
        parser.error("name one checkpoint, either as MODEL or with --checkpoint")
    streams = [
        flag
        for flag, value in (
            ("--expert-cache-gb", options.expert_cache_gb),
            ("--prefill-scratch-gb", options.prefill_scratch_gb),
        )
        if value is not None
    ]
    if options.backend == "openai":
        refuse_beside_openai(parser, options)
        options.residency = UNSWAPPED
    elif options.residency is None:
        parser.error("one of --streaming and --no-streaming is required (or --backend openai)")
    if streams and options.residency == "stacked":
        parser.error(f"{streams[0]} needs --streaming: with --no-streaming every expert stays in memory")
    if options.uds is not None and (options.host is not None or options.port is not None):
        parser.error("--uds listens on no TCP address: leave out --host and --port")
    if options.record_trace is None and options.record_trace_mb is not None:
        parser.error("--record-trace-mb bounds a recording: give --record-trace too")
    if options.record_trace is not None and options.backend == "openai":
        parser.error("--record-trace needs mach's own engine: with --backend openai nobody sees the routes")
    limits = Limits(
        body_bytes=options.max_body_bytes,
        discarded_bytes=max(_LIMITS.discarded_bytes, options.max_body_bytes),
        prompt_tokens=options.max_prompt_tokens,
        queue_length=options.max_queue,
        request_seconds=options.request_timeout,
        drain_seconds=options.grace_seconds,
    )
    return ServeOptions(
        engine=EngineConfig(
            checkpoint=options.checkpoint or options.model,
            expert_residency=options.residency,
            expert_cache_gb=options.expert_cache_gb,
            memory_gb=options.memory_gb,
            prefill_scratch_gb=options.prefill_scratch_gb,
            kv_cache_gb=options.kv_cache_gb,
            wired_gb=options.wired_gb,
        ),
        target_only=options.target_only,
        host=DEFAULT_HOST if options.host is None else options.host,
        port=DEFAULT_PORT if options.port is None else options.port,
        uds=options.uds,
        api_key=key_from_environment() if options.api_key is None else options.api_key,
        cors_origins=tuple(options.cors_origins),
        allowed_hosts=frozenset(options.allowed_hosts),
        limits=limits,
        log_format=options.log_format,
        record_trace=options.record_trace,
        record_trace_bytes=int(1e6 * (options.record_trace_mb or DEFAULT_MEGABYTES)),
        quiet=options.quiet,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mach-serve",
        description="Serve a Mixture-of-Experts checkpoint over OpenAI's and Anthropic's HTTP APIs.",
        allow_abbrev=False,
    )
    _add_model_flags(parser)
    add_budget_flags(parser.add_argument_group("memory"))
    _add_address_flags(parser.add_argument_group("address and access"))
    _add_limit_flags(parser.add_argument_group("limits"))
    _add_trace_flags(parser.add_argument_group("recording"))
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="how stderr's lines look, one for each request among them (default: %(default)s)",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="no progress bar on stderr while the model is loaded"
    )
    return parser


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="checkpoint directory, or an installed name"
    )
    parser.add_argument("--checkpoint", metavar="MODEL", help="the same as the positional MODEL")
    add_residency_flags(parser)
    parser.add_argument(
        "--target-only", action="store_true", help="no speculative decoding (this version has none anyway)"
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="production",
        help="openai: any model that mlx-lm has, dense ones too, as mlx-lm runs it; production and dflash "
        "both mean mach's own engine, which in this version decodes target-only (default: %(default)s)",
    )


def _add_address_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--host",
        help=f"address to listen on (default: {DEFAULT_HOST}); whoever reaches it may use the server, so "
        "give others than loopback ones an API key",
    )
    group.add_argument(
        "--port",
        type=_whole(0, 65535),
        help=f"TCP port to listen on; 0 takes a free one (default: {DEFAULT_PORT})",
    )
    group.add_argument(
        "--uds", metavar="PATH", type=_path, help="listen on a Unix socket at PATH instead, open to this user"
    )
    group.add_argument(
        "--api-key",
        type=_checked(checked_key),
        metavar="KEY",
        help="what every request must show; other users of this machine may see the command line, so "
        f"the variable {VARIABLE} is the better place (default: any key is accepted)",
    )
    group.add_argument(
        "--cors-origin",
        dest="cors_origins",
        action="append",
        default=[],
        type=_checked(checked_origin),
        metavar="ORIGIN",
        help="let web pages of this origin use the server, e.g. https://chat.example.org; * lets all; may "
        "be given several times (default: none)",
    )
    group.add_argument(
        "--allowed-host",
        dest="allowed_hosts",
        action="append",
        default=[],
        type=_checked(checked_host),
        metavar="NAME",
        help="a name by which a server on loopback without an API key may be called, besides localhost and "
        "IP addresses; may be given several times",
    )


def _add_limit_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-body-bytes",
        type=_whole(1, 1 << 32),
        default=_LIMITS.body_bytes,
        metavar="N",
        help="longest request body, in bytes; then 413 (default: %(default)s)",
    )
    group.add_argument(
        "--max-prompt-tokens",
        type=_whole(1, 1 << 31),
        metavar="N",
        help="longest prompt, in tokens; then 400 (default: what the model's context holds)",
    )
    group.add_argument(
        "--max-queue",
        type=_whole(0, 100_000),
        default=_LIMITS.queue_length,
        metavar="N",
        help="requests that may wait behind the running one; then 429 (default: %(default)s)",
    )
    group.add_argument(
        "--request-timeout",
        type=_number("seconds", 0.001, _MOST_SECONDS),
        metavar="SECONDS",
        help="time for an answer, its waiting included; then 504, or an error event (default: no limit)",
    )
    group.add_argument(
        "--grace-seconds",
        type=_number("seconds", 0.0, _MOST_SECONDS),
        default=_LIMITS.drain_seconds,
        metavar="SECONDS",
        help="time that open requests have to finish after SIGTERM (default: %(default)g)",
    )


def _add_trace_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--record-trace",
        type=_path,
        metavar="FILE",
        help="record which experts each token is routed to, for mach trace replay; a directory gets a file "
        "with the time in its name",
    )
    group.add_argument(
        "--record-trace-mb",
        type=_number("megabytes", 0.001, 1e6),
        metavar="MB",
        help=f"end the recording when the file has so many 10⁶ bytes (default: {DEFAULT_MEGABYTES})",
    )


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return read


def _number(unit: str, low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of {unit} from {low:g} to {high:.7g}")
        return value

    return read


def _checked(check: Callable[[str], str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        try:
            return check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("the path is empty or holds a NUL")
    return text
