"""Owns `mach-serve`: start-up in the right order, signals, exit status.

Exit statuses: 0 after a drain, 2 when it refuses to start (usage, checkpoint, budget, address), 130 for
Ctrl-C while loading. A second SIGTERM or SIGINT kills the process, as the signal does by default.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module

from mach.commands.process import run_command
from mach.commands.progress_bar import ProgressBar
from mach_server.api_key import VARIABLE
from mach_server.http_server import HttpServer
from mach_server.inference_service import InferenceService
from mach_server.listening_socket import tcp_socket, unix_socket
from mach_server.log_output import MEMORY, logging_to
from mach_server.serve_options import ServeOptions, parse
from mach_server.startup_lines import startup_lines
from mach_server.trace_recording import TraceRecording

log = logging.getLogger("mach.server")


def main(arguments: Sequence[str] | None = None) -> int:
    """Console script, and the `serve` command of `mach`; returns the exit status."""
    return run_command("mach-serve", run, arguments)


def run(arguments: Sequence[str]) -> int:
    """The command itself; what it raises is for its caller to report."""
    try:
        options = parse(arguments)
    except SystemExit as end:  # argparse has printed what there is to say
        return end.code if isinstance(end.code, int) else 2
    with logging_to(sys.stderr, options.log_format):
        ended = _run(options)
    if not ended:
        sys.stdout.flush()
        os._exit(0)  # the interpreter must not be taken down under a thread that computes
    return 0


def _run(options: ServeOptions) -> bool:
    """Serve until a signal; whether the engine's thread has ended."""
    recording = None
    if options.record_trace is not None:
        recording = TraceRecording(options.record_trace, options.record_trace_bytes)
    bar = ProgressBar(quiet=options.quiet or options.log_format == "json")
    engine = replace(options.engine, listener=bar.update)
    service = InferenceService(engine, options.limits, target_only=options.target_only, recording=recording)
    # The address before the weights: a port in use should not cost a long load.
    if options.uds is None:
        listening = tcp_socket(options.host, options.port, options.limits)
    else:
        listening = unix_socket(options.uds, options.limits)
    access = options.access(loopback=listening.loopback, is_unix=listening.is_unix)
    if access.api_key is None and not listening.loopback:
        log.warning(
            "%s can be reached from other machines, and without --api-key or %s anybody there may use it",
            listening.where,
            VARIABLE,
        )
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(HttpServer(service, listening, access), service, listening.url, bar))
    finally:
        bar.close()
        listening.close()
    ended = service.close()
    if not ended:
        log.warning("a generation step did not end in time; leaving without it")
    return ended


async def _serve(server: HttpServer, service: InferenceService, url: str, bar: ProgressBar) -> None:
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
        bar.close()
        facts = service.facts
        if facts.reader == "diagnostic-python":
            log.warning("experts are read by the slow diagnostic Python reader (%s)", facts.reader_reason)
        if facts.streaming:
            logging.getLogger(MEMORY).info("experts are read %s: %s", facts.direct.way, facts.direct.reason)
            if facts.dispatch_reason is not None:
                log.info("the host is asked in every layer: %s", facts.dispatch_reason)
            if facts.prefetch_refusal is not None:
                log.info("no expert is read before it is needed: %s", facts.prefetch_refusal)
        # Until here a signal ends the process at once: nothing is to be drained, and no load can be stopped.
        for number in signals:
            loop.add_signal_handler(number, drain)
        for line in startup_lines(facts):
            print(line)
        print(f"startup ready url={url} model={facts.model}", flush=True)

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


if __name__ == "__main__":
    sys.exit(main())
