"""A mach server whose engine makes a token every so often and computes nothing; each says when it was made.

    python tools/bench/paced_server.py [TOKENS_PER_SECOND]

For bench_server.py: what the client sees later than the engine made it is the server's own doing.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Iterator

import uvloop

from mach_decode.engine import Engine, EngineConfig
from mach_decode.request import GenerationFigures, GenerationRequest, StepEvent
from mach_server.http_server import HttpServer
from mach_server.inference_service import InferenceService
from mach_server.limits import Limits
from mach_server.listening_socket import tcp_socket

RATE = float(sys.argv[1]) if len(sys.argv) > 1 else 100.0


class PacedEngine(Engine):
    """Tokens of a fixed rate; the text of each is `time.monotonic_ns()`."""

    def generate(
        self, request: GenerationRequest, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[StepEvent]:
        """`max_tokens` tokens."""
        wanted, prompt, began = request.max_tokens or 1, len(request.prompt), time.perf_counter()
        for made in range(1, wanted + 1):
            time.sleep(max(0.0, began + made / RATE - time.perf_counter()))
            figures = GenerationFigures(
                prompt_tokens=prompt, completion_tokens=made, first_token_seconds=1 / RATE,
                decode_seconds=(made - 1) / RATE, expert_hits=0, expert_misses=0, bytes_read=0,
                read_seconds=0.0,
            )  # fmt: skip
            end = made == wanted
            yield StepEvent(
                text=f"{time.monotonic_ns()} ",
                token=1,
                prefilled=prompt,
                finish_reason="length" if end else None,
                figures=figures if end else None,
            )


async def _serve(server: HttpServer, url: str) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
    await server.serve(lambda: print(f"startup ready url={url}", flush=True))


def main() -> None:
    """Serve until SIGTERM."""
    service = InferenceService(EngineConfig(checkpoint="mach-pico"), Limits(), engine_class=PacedEngine)
    listening = tcp_socket("127.0.0.1", 0, service.limits)
    server = HttpServer(service, listening)
    service.start()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(server, listening.url))
    listening.close()
    service.close()


if __name__ == "__main__":
    main()
