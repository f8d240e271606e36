"""Decodes with the library as often as its standard input has lines; for bench_server.py.

    python tools/bench/library_decode.py TOKENS < lines

A process of its own, as the server is. Its first line is mach-serve's ready line, each further one the
seconds per token after the first.
"""

from __future__ import annotations

import sys
import time

from mach_decode.engine import Engine, EngineConfig
from mach_decode.request import GenerationRequest


def main(tokens: int) -> None:
    """Each line of stdin is a prompt, its newlines escaped."""
    engine = Engine.load(EngineConfig(checkpoint="mach-pico"))
    print("startup ready url=none", flush=True)
    for line in sys.stdin:
        prompt = engine.encode(line.rstrip("\n").encode().decode("unicode_escape"))
        request = GenerationRequest(prompt=prompt, max_tokens=tokens)
        stamps = [time.perf_counter() for event in engine.generate(request) if event.token is not None]
        if len(stamps) != tokens:
            raise RuntimeError(f"{len(stamps)} tokens instead of {tokens}")
        print((stamps[-1] - stamps[0]) / (tokens - 1), flush=True)
    engine.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
