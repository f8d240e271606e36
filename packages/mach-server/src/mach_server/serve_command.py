"""Owns `mach-serve`: flags, start-up in the right order, signals, exit status.

Exit statuses: 0 after a drain, 2 when it refuses to start (usage, checkpoint, budget, address), 130 for
Ctrl-C while loading. A second SIGTERM or SIGINT kills the process, as the signal does by default.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module

from mach.commands.process import run_command
from mach_decode.engine import UNSWAPPED, EngineConfig
from mach_server.http_server import HttpServer
from mach_server.inference_service import InferenceService
from mach_server.limits import Limits
from mach_server.startup_lines import startup_lines

log = logging.getLogger("mach.server")

BACKENDS = ("production", "dflash", "openai")


def main(arguments: Sequence[str] | None = None) -> int:
    """Console script, and the `serve` command of `mach`; returns the exit status."""
    return run_command("mach-serve", run, arguments)


def run(arguments: Sequence[str]) -> int:
    """The command itself; what it raises is for its caller to report."""
    try:
        options = _parse(arguments)
    except SystemExit as end:  # argparse has printed what there is to say
        return end.code if isinstance(end.code, int) else 2
    logging.basicConfig(level=logging.WARNING, format="mach-serve: %(levelname)s: %(message)s")
    limits = Limits()
    config = EngineConfig(
        checkpoint=options.checkpoint,
        expert_residency=options.residency,
        expert_cache_gb=options.expert_cache_gb,
    )
    service = InferenceService(config, limits, target_only=options.target_only)
    # The address before the weights: a port in use should not cost a long load.
    server = HttpServer(service, options.host, options.port)
    try:
        service.start()
        for line in startup_lines(service.facts):
            print(line, flush=True)
        if service.facts.reader == "diagnostic-python":
            log.warning(
                "experts are read by the slow diagnostic Python reader (%s)", service.facts.reader_reason
            )
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(server, service))
    finally:
        server.close()
    if not service.close():
        log.warning("a generation step did not end in time; leaving without it")
        sys.stdout.flush()
        os._exit(0)  # the interpreter must not be taken down under a thread that computes
    return 0


async def _serve(server: HttpServer, service: InferenceService) -> None:
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def drain() -> None:
        for number in signals:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)  # a second one ends at once, even if this loop is stuck
        server.stop()
        with suppress(OSError):  # whoever read our stdout may be gone; the end must come all the same
            print(
                f"shutdown draining open_requests={service.admitted} "
                f"grace_seconds={service.limits.drain_seconds:g}",
                flush=True,
            )

    def ready() -> None:
        print(f"startup ready url={server.url} model={service.facts.model}", flush=True)

    for number in signals:
        loop.add_signal_handler(number, drain)
    await server.serve(ready)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The one of uvloop where that is installed; None is asyncio's own."""
    try:
        factory: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    except ImportError as error:
        if error.name != "uvloop":
            raise
        return None
    return factory


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mach-serve",
        description="Serve a Mixture-of-Experts checkpoint over OpenAI's HTTP API.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="checkpoint directory, or an installed name"
    )
    parser.add_argument("--checkpoint", metavar="MODEL", help="the same as the positional MODEL")
    residency = parser.add_mutually_exclusive_group()
    residency.add_argument(
        "--streaming",
        dest="residency",
        action="store_const",
        const="streaming",
        help="experts are read from disk into a bounded bank",
    )
    residency.add_argument(
        "--no-streaming",
        dest="residency",
        action="store_const",
        const="stacked",
        help="every expert stays in memory (stacked layout only)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port",
        type=_port,
        default=8080,
        help="port to listen on; 0 takes a free one (default: %(default)s)",
    )
    parser.add_argument(
        "--expert-cache-gb",
        type=float,
        metavar="GB",
        help="budget of the expert bank in 10⁹ bytes (default: all experts, or half of the free memory)",
    )
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
    options = parser.parse_args(arguments)
    if (options.model is None) == (options.checkpoint is None):
        parser.error("name one checkpoint, either as MODEL or with --checkpoint")
    if options.backend == "openai":
        if options.residency is not None or options.expert_cache_gb is not None:
            parser.error(
                "--backend openai serves mlx-lm's own model: leave out --streaming, --no-streaming and "
                "--expert-cache-gb"
            )
        options.residency = UNSWAPPED
    elif options.residency is None:
        parser.error("one of --streaming and --no-streaming is required (or --backend openai)")
    if options.expert_cache_gb is not None and options.residency == "stacked":
        parser.error("--expert-cache-gb needs --streaming: with --no-streaming every expert stays in memory")
    options.checkpoint = options.checkpoint or options.model
    return options


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
