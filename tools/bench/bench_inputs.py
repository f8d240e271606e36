"""Make what the benchmarks of streaming read: recorded routes, and checkpoints to replay them in.

    uv run python tools/bench/bench_inputs.py [--inputs DIR]

The routes are mach-pico's. `big` has 2.04 GB of 4-bit experts: 6 layers of 128, hidden 2048, width 768, top
8. Both it and mach-pico are written in the stacked layout too, which mlx-lm loads. What is there already is
left as it is. Half a minute.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_record import add_output_option
from contestants import Setting
from replayed_routes import record_routes

from mach.commands.process import run_command
from mach.errors import CommandError
from mach.io.checkpoint_path import resolve_checkpoint
from mach_store.engine_checkpoint import write_stacked_checkpoint
from mach_store.synthetic_checkpoint import qwen3_moe_config, write_synthetic_checkpoint

DEFAULT = Path(tempfile.gettempdir()) / "mach-bench-inputs"
PICO = "mach-pico"
BIG = qwen3_moe_config(
    hidden=2048,
    layers=6,
    experts=128,
    top_k=8,
    expert_width=768,
    head_dim=64,
    context=4096,
    group_size=64,
)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where everything is.

    Attributes:
        folder: holds it all.
    """

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> Inputs:
        """What `main` has made.

        Raises:
            CommandError: something is missing.
        """
        inputs = cls(folder)
        for path in (inputs.routes, *(inputs.stacked(name) for name in (PICO, "big")), folder / "big"):
            if not path.exists():
                raise CommandError(
                    f"{path} is missing: run tools/bench/bench_inputs.py --inputs {folder}", exit_status=2
                )
        return inputs

    @property
    def routes(self) -> Path:
        """The recorded routes."""
        return self.folder / "routes.npz"

    def stacked(self, name: str) -> Path:
        """A checkpoint in the layout that mlx-lm loads. Args: name: `mach-pico` or `big`."""
        return self.folder / f"{name}-stacked"

    def setting(self, name: str) -> Setting:
        """mach, streaming, on `mach-pico` (own routes, drawn answers) or `big` (replayed ones, greedy)."""
        own = name == PICO
        return Setting(
            checkpoint=name if own else str(self.folder / name),
            routes=str(self.routes),
            replay=not own,
            temperature=0.8 if own else 0.0,
        )


def main(arguments: Sequence[str]) -> int:
    """Make what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_inputs_option(parser)
    parser.add_argument(
        "--small", action="store_true", help="a `big` of 13 MB and short routes, to try the tools"
    )
    options = parser.parse_args(arguments)
    inputs = Inputs(options.inputs)
    inputs.folder.mkdir(parents=True, exist_ok=True)
    pico = resolve_checkpoint(PICO)
    config = BIG
    if options.small:
        config = {**BIG, "hidden_size": 256, "moe_intermediate_size": 128, "intermediate_size": 512}
        config |= {"num_attention_heads": 2, "num_hidden_layers": 2}
    if not inputs.routes.exists():
        record_routes(200 if options.small else 2000).save(inputs.routes)
    _make(inputs.stacked(PICO), lambda path: write_stacked_checkpoint(pico, path))
    _make(inputs.folder / "big", lambda path: write_synthetic_checkpoint(path, config, tokenizer_from=pico))
    _make(inputs.stacked("big"), lambda path: write_stacked_checkpoint(inputs.folder / "big", path))
    return 0


def figure_parser(
    description: str | None, *, rounds: int, tokens: int | None = None, checkpoint: str | None = None
) -> argparse.ArgumentParser:
    """What the tools of the figures have in common: `--inputs`, `--output`, `--rounds`.

    Args:
        description: the tool's docstring.
        rounds: the default.
        tokens: the default of `--tokens`; None is a tool without it.
        checkpoint: the default of `--checkpoint`; None is a tool without it.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_inputs_option(parser)
    add_output_option(parser)
    if checkpoint is not None:
        parser.add_argument("--checkpoint", choices=(PICO, "big"), default=checkpoint)
    parser.add_argument("--rounds", type=int, default=rounds)
    if tokens is not None:
        parser.add_argument("--tokens", type=int, default=tokens)
    return parser


def _add_inputs_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--inputs", type=Path, default=DEFAULT, help="folder of bench_inputs.py")


def _make(output: Path, write: Callable[[Path], None]) -> None:
    """A directory, under its name only when it is whole."""
    if output.exists():
        return
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write(partial)
    partial.rename(output)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {size / 1e9:.2f} GB")


if __name__ == "__main__":
    sys.exit(run_command("bench_inputs", main))
