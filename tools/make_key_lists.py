"""Derive the key lists of MLX conversions, for packages/mach-core/tests/key_lists.

    uv run python tools/make_key_lists.py LIST.json OUT.json --bits 4 [--mode affine] [--group-size 64]

LIST.json is a published checkpoint's list, whose config counts. mlx-lm's model of it is built and quantised
as mlx-lm's converter would, without evaluating anything: its parameters' names, dtypes and shapes are the
list.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import quantize_model

Tensor = tuple[str, str, tuple[int, ...]]
DTYPES = {"bfloat16": "BF16", "float32": "F32", "uint32": "U32", "uint8": "U8"}


def main(arguments: Sequence[str]) -> int:
    """Derive one list and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--mode", default="affine")
    parser.add_argument("--group-size", type=int, default=64)
    options = parser.parse_args(arguments)
    config = json.loads(options.source.read_text())["config"]
    quantization = {"group_size": options.group_size, "bits": options.bits, "mode": options.mode}
    tensors, config = mlx_tensors(config, quantization)
    rows = [[name, dtype, list(shape)] for name, dtype, shape in compress(tensors)]
    write_list(options.output, {"config": config, "count": len(tensors)}, rows)
    return 0


def mlx_tensors(config: dict[str, Any], quantization: dict[str, Any]) -> tuple[list[Tensor], dict[str, Any]]:
    """The parameters of mlx-lm's model, and its config with what the quantisation adds to it."""
    module = import_module(f"mlx_lm.models.{config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(config))
    model.set_dtype(mx.bfloat16)
    plain = {name: value for name, value in config.items() if name != "quantization_config"}
    model, made = quantize_model(
        model,
        plain,
        quantization["group_size"],
        quantization["bits"],
        mode=quantization["mode"],
        quant_predicate=getattr(model, "quant_predicate", None),
    )
    return [
        (name, DTYPES[str(array.dtype).removeprefix("mlx.core.")], tuple(array.shape))
        for name, array in tree_flatten(model.parameters())
    ], made


def compress(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Tensors with the same name but for the layer's number → one row, its numbers in braces."""
    rows: dict[tuple[str, str, tuple[int, ...]], list[int]] = {}
    for name, dtype, shape in tensors:
        match = re.search(r"\.(\d+)\.", name)
        pattern = name if match is None else f"{name[: match.start(1)]}{{}}{name[match.end(1) :]}"
        rows.setdefault((pattern, dtype, shape), []).extend([int(match[1])] if match else [])
    return [
        (pattern.replace("{}", "{" + numbers_text(numbers) + "}") if numbers else pattern, dtype, shape)
        for (pattern, dtype, shape), numbers in rows.items()
    ]


def numbers_text(numbers: Sequence[int]) -> str:
    """`0-2,4,6` for [0, 1, 2, 4, 6]."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def write_list(path: Path, head: dict[str, Any], rows: Sequence[Sequence[Any]]) -> None:
    """Write one list, a line per row."""
    text = json.dumps(head, indent=1)[:-2] + ',\n "tensors": [\n'
    path.write_text(text + ",\n".join("  " + json.dumps(row) for row in rows) + "\n ]\n}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
