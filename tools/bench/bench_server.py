"""What the server adds to the library, and how it stands beside mlx_lm.server; rounds alternate in one run.

    uv run python tools/bench/bench_server.py [--rounds 9] [--tokens 256] [--only cost,latency,models,peer]

cost     seconds per token of a streamed completion as its client sees them, against the library's own decode
         of the same prompt; mach-pico, every expert in memory, each in a process of its own. Their processor
         time (Linux) says the same where other work takes the cores away.
latency  at 100 tokens per second from an engine that only sleeps: from the engine's handing over a token to
         its arrival at the client.
models   GET /v1/models while a generation runs: as many as are answered; how much 1,000 a second slow the
         generation; and the processor time of one, the server idle otherwise (Linux). The client is a process
         of its own and needs a core at times, as the server's event loop does; `against another server` sends
         the same load to a second server, so that nothing but the competition for cores is left.
peer     throughput and time to the first token beside mlx_lm.server on the same stacked checkpoint; as it is
         (bfloat16, slow on a CPU) and with its floats widened to float32. Prompts differ from round to round,
         so that nobody's prompt cache helps.

Clients run on the same machine. Figures are medians; ratios are medians of the rounds' ratios. Appends to
docs/bench/server.csv.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import mlx.core as mx
from bench_record import append_rows
from server_process import cpu_seconds, mach_serve, mlx_lm_server, ready_line_server
from stream_client import StreamTimes, stream_completion

from mach.commands.process import run_command
from mach.io.checkpoint_path import resolve_checkpoint
from mach_store.engine_checkpoint import write_stacked_checkpoint

PROMPT = '"""Tools for reading and writing small configuration files."""\n\nimport json\nimport os\n\n\ndef '
LOAD_RATE = 1000.0
LOAD_SECONDS = 3.0
SECTIONS = ("cost", "latency", "models", "peer")
Row = dict[str, object]


def main(arguments: Sequence[str]) -> int:
    """Measure, print a table, append the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--only", default=",".join(SECTIONS))
    options = parser.parse_args(arguments)
    sections: dict[str, Callable[[int, int], list[Row]]] = {
        "cost": _cost, "latency": _latency, "models": _models, "peer": _peer,
    }  # fmt: skip
    rows = [row for name in options.only.split(",") for row in sections[name](options.rounds, options.tokens)]
    columns = ("section", "what", "value", "unit", "ratio", "ratio_low", "ratio_high", "limit")
    full = [{column: row.get(column, "") for column in columns} for row in rows]
    append_rows("server", full, rounds=options.rounds, tokens=options.tokens)
    return 0


def _cost(rounds: int, tokens: int) -> list[Row]:
    script = str(Path(__file__).with_name("library_decode.py"))
    worker_command = [sys.executable, script, str(tokens)]
    serve_command = [
        sys.executable,
        "-m",
        "mach_server.serve_command",
        "mach-pico",
        "--streaming",
        "--port",
        "0",
    ]
    spent: dict[str, list[float]] = {"library": [], "server, streamed": []}
    with (
        subprocess.Popen(worker_command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker,
        ready_line_server(serve_command) as (url, pid),
    ):
        assert worker.stdin is not None and worker.stdout is not None
        stdin, stdout = worker.stdin, worker.stdout
        stdout.readline()

        def library() -> float:
            before = cpu_seconds(worker.pid)
            stdin.write(PROMPT.encode("unicode_escape").decode() + "\n")
            stdin.flush()
            seconds = float(stdout.readline())
            spent["library"].append((cpu_seconds(worker.pid) - before) / tokens)
            return seconds

        def server() -> float:
            before = cpu_seconds(pid)
            told = _completion(url, tokens)
            assert told.tokens == tokens
            spent["server, streamed"].append((cpu_seconds(pid) - before) / tokens)
            return told.seconds / (tokens - 1)

        took = _alternating(rounds, {"library": library, "server, streamed": server})
        stdin.close()
    rows = []
    for name, values in took.items():
        ratios = _ratios(values, took["library"])
        rows.append(_row("cost", name, statistics.median(values) * 1e6, "µs/token", ratios, 1.05))
        processor = spent[name][1:]
        ratios = _ratios(processor, spent["library"][1:])
        rows.append(
            _row(
                "cost", f"{name}: processor time", statistics.median(processor) * 1e6, "µs/token", ratios, ""
            )
        )
    return rows


def _latency(rounds: int, tokens: int) -> list[Row]:
    command = [sys.executable, str(Path(__file__).with_name("paced_server.py")), "100"]
    late: list[float] = []
    with ready_line_server(command) as (url, _):
        for _ in range(max(2, rounds // 2)):
            for moment, text in _completion(url, tokens).stamps:
                # Tokens that came in one event waited for the last of them; each is counted.
                late += [(moment - int(made)) / 1e6 for made in text.split()]
    late.sort()
    return [
        {
            "section": "latency",
            "what": f"{name} of {len(late)}",
            "value": f"{late[int(part * (len(late) - 1))]:.3f}",
            "unit": "ms",
            "limit": limit,
        }
        for name, part, limit in (("p50", 0.5, 1.0), ("p99", 0.99, ""))
    ]


def _models(rounds: int, tokens: int) -> list[Row]:
    tokens = max(tokens, 1000)
    with mach_serve("mach-pico", "--streaming") as url, mach_serve("mach-pico", "--streaming") as other:
        rates: dict[str, list[float]] = {}
        per_request = [_per_request(rate) for rate in (LOAD_RATE, None)]

        def during(target: str | None, rate: float | None, name: str = "") -> Callable[[], float]:
            def run() -> float:
                with _load(target, rate) as answered:
                    told = _completion(url, tokens)
                if target is not None:
                    rates.setdefault(name, []).append(answered())
                return told.seconds / (told.tokens - 1)

            return run

        took = _alternating(
            rounds,
            {
                "generation alone": during(None, None),
                "generation, 1,000 requests/s": during(url, LOAD_RATE, "paced"),
                "generation, 1,000 requests/s against another server": during(other, LOAD_RATE, "other"),
                "generation, as many requests as are answered": during(url, None, "flat out"),
            },
        )
    rows = [
        _row(
            "models",
            name,
            statistics.median(values) * 1e6,
            "µs/token",
            _ratios(values, took["generation alone"]),
            1.05 if name == "generation, 1,000 requests/s" else "",
        )
        for name, values in took.items()
    ]
    rows += [
        {"section": "models", "what": f"processor time of a request, {name}", "value": f"{spent * 1e6:.0f}"}
        | {"unit": "µs"}
        for name, spent in zip(("paced", "flat out"), per_request, strict=True)
    ]
    for name, values in rates.items():
        rows.append(
            {
                "section": "models",
                "what": f"answered during a generation, {name}",
                "value": f"{statistics.median(values):.0f}",
                "unit": "requests/s",
                "limit": 1000 if name == "flat out" else "",
            }
        )
    return rows


def _per_request(rate: float | None) -> float:
    """Seconds of processor time that a server with nothing else to do spends on one request."""
    script = str(Path(__file__).with_name("paced_server.py"))
    with ready_line_server([sys.executable, script]) as (url, pid):
        before, began = cpu_seconds(pid), time.monotonic()
        with _load(url, rate) as answered:
            time.sleep(LOAD_SECONDS)
            spent, seconds = cpu_seconds(pid) - before, time.monotonic() - began
        return spent / (answered() * seconds)


@contextmanager
def _load(target: str | None, rate: float | None) -> Iterator[Callable[[], float]]:
    """The load's client beside the block; afterwards the requests per second that it got answered."""
    if target is None:
        yield lambda: 0.0
        return
    script = str(Path(__file__).with_name("models_load.py"))
    command = [sys.executable, script, target, *([] if rate is None else [str(rate)])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin is not None and client.stdout is not None
        client.stdout.readline()  # it has begun
        told: list[float] = []
        yield lambda: told[0]
        client.stdin.close()
        told.append(float(client.stdout.read()))


def _peer(rounds: int, tokens: int) -> list[Row]:
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stacked, wide = scratch / "stacked", scratch / "wide"
        write_stacked_checkpoint(resolve_checkpoint("mach-pico"), stacked)
        _widened(stacked, wide)
        urls = {
            "mlx_lm.server, float32": (stack.enter_context(mlx_lm_server(wide)), str(wide)),
            "mlx_lm.server, as it is": (stack.enter_context(mlx_lm_server(stacked)), str(stacked)),
            "mach-serve --no-streaming": (
                stack.enter_context(mach_serve(str(stacked), "--no-streaming")), "stacked"),
            "mach-serve --streaming, every expert in memory": (
                stack.enter_context(mach_serve("mach-pico", "--streaming")), "mach-pico"),
            "mach-serve --backend openai": (
                stack.enter_context(mach_serve(str(stacked), "--backend", "openai")), "stacked"),
        }  # fmt: skip
        counter = iter(range(1_000_000))
        first: dict[str, list[float]] = {name: [] for name in urls}

        def one(name: str) -> Callable[[], float]:
            url, model = urls[name]

            def run() -> float:
                told = _completion(url, tokens, model=model, prompt=f"# {next(counter)}\n{PROMPT * 8}")
                first[name].append(told.first_seconds)
                return told.seconds / (told.tokens - 1)

            return run

        took = _alternating(rounds, {name: one(name) for name in urls})
    base = "mlx_lm.server, float32"
    rows = []
    for name, values in took.items():
        speed = 1 / statistics.median(values)
        rows.append(_row("peer", name, speed, "tokens/s", _ratios(took[base], values), ""))
        early = first[name][1:]
        ratios = _ratios(first[base][1:], early)
        rows.append(_row("peer", f"{name}: first token", statistics.median(early) * 1e3, "ms", ratios, ""))
    return rows


def _widened(source: Path, target: Path) -> None:
    """A copy of a checkpoint whose floats are float32: mlx-lm's fastest setting on a CPU."""
    shutil.copytree(source, target)
    for path in target.glob("*.safetensors"):
        tensors = mx.load(str(path))
        assert isinstance(tensors, dict)
        wide = {
            name: array.astype(mx.float32) if array.dtype == mx.bfloat16 else array
            for name, array in tensors.items()
        }
        mx.eval(wide)
        path.unlink()
        mx.save_safetensors(str(path), wide, metadata={"format": "mlx"})


def _completion(url: str, tokens: int, *, model: str = "mach-pico", prompt: str = PROMPT) -> StreamTimes:
    return stream_completion(url, model=model, prompt=prompt, max_tokens=tokens, temperature=0)


def _alternating(rounds: int, contestants: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Seconds of every contestant in every round; the first round warms up and is dropped."""
    took: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        order = list(contestants.items())
        for name, contestant in order if number % 2 else reversed(order):
            took[name].append(contestant())
    return {name: values[1:] for name, values in took.items()}


def _ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    return sorted(value / other for value, other in zip(values, base, strict=True))


def _row(
    section: str, what: str, value: float, unit: str, ratios: Sequence[float], limit: float | str
) -> Row:
    return {
        "section": section,
        "what": what,
        "value": f"{value:.1f}",
        "unit": unit,
        "ratio": f"{statistics.median(ratios):.3f}",
        "ratio_low": f"{ratios[0]:.3f}",
        "ratio_high": f"{ratios[-1]:.3f}",
        "limit": limit,
    }


if __name__ == "__main__":
    sys.exit(run_command("bench_server", main))
