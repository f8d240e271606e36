"""Make the golden data of tests/golden with Hugging Face transformers, in float32, on the CPU.

Owns the reference's side: it loads each case's checkpoint as published, runs the prompts and the greedy
continuations without any cache, and writes logits and a manifest. It knows nothing of the engine.

    python tools/golden/make_golden.py [CASE ...] [--output tests/golden]

README.md beside it says which environment it needs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from golden_cases import CASES, GoldenCase, tokens_of
from golden_checkpoint import write_golden_checkpoint
from transformers import AutoModelForCausalLM

OUTPUT = Path(__file__).resolve().parents[2] / "tests" / "golden"


def load_reference(directory: Path, case: GoldenCase) -> Any:
    """The reference's model in float32, having loaded every tensor of the checkpoint and no other.

    Raises:
        SystemExit: a tensor was missing, unexpected or of another shape.
    """
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    options["experts_implementation"] = "eager"
    if case.spelling == "mxfp4":
        options["quantization_config"] = transformers.Mxfp4Config(dequantize=True)
    model, found = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, **options)
    unexpected = set(found["unexpected_keys"]) - set(case.extra)
    if found["missing_keys"] or unexpected or found["mismatched_keys"]:
        raise SystemExit(f"{case.name}: the reference does not take the checkpoint: {found}")
    for name, parameter in (*model.named_parameters(), *model.named_buffers()):
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise SystemExit(f"{case.name}: {name} is {parameter.dtype} in the reference, not float32")
    return model.eval()


@torch.no_grad()
def logits_of(model: Any, tokens: list[int]) -> np.ndarray:
    """Logits [tokens, vocabulary] of a whole prompt, without a cache."""
    logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()
    assert np.isfinite(logits).all()
    return logits


def greedy(model: Any, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """`count` most likely tokens after `prompt`, and by how much each beat the second."""
    tokens, margins = list(prompt), []
    for _ in range(count):
        last = logits_of(model, tokens)[-1]
        second, first = np.sort(last)[-2:]
        tokens.append(int(last.argmax()))
        margins.append(float(first - second))
    return tokens[len(prompt) :], margins


def make(case: GoldenCase, output: Path) -> dict[str, Any]:
    """Write the case's logits; its entry of the manifest."""
    with tempfile.TemporaryDirectory() as scratch:
        digest = write_golden_checkpoint(case, Path(scratch))
        model = load_reference(Path(scratch), case)
    arrays, prompts = {}, []
    for length, step in case.prompts:
        tokens = tokens_of(case, length)
        logits = logits_of(model, tokens)
        positions = sorted({*range(0, length, step), length - 1})
        arrays[f"logits_{length}"] = logits[positions]
        continuation, margins = greedy(model, tokens, case.greedy)
        prompts.append(
            {
                "length": length,
                "positions": positions,
                "greedy": continuation,
                "margins": [round(margin, 7) for margin in margins],
                "scale": round(float(np.abs(logits).max()), 4),
            }
        )
    np.savez_compressed(output / f"{case.name}.npz", **arrays)
    return {"family": case.family, "sha256": digest, "prompts": prompts}


def main() -> None:
    """Make the cases that are asked for, or all, and bring the manifest up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; default all")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    if unknown := set(arguments.cases) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    manifest_path = arguments.output / "manifest.json"
    manifest = json.loads(manifest_path.read_text()) if arguments.cases else {"cases": {}}
    manifest["made_with"] = {"torch": torch.__version__, "transformers": transformers.__version__}
    for name in arguments.cases or CASES:
        manifest["cases"][name] = make(CASES[name], arguments.output)
        for prompt in manifest["cases"][name]["prompts"]:
            print(name, prompt["length"], "scale", prompt["scale"], prompt["greedy"], min(prompt["margins"]))
    manifest["cases"] = {name: manifest["cases"][name] for name in CASES if name in manifest["cases"]}
    manifest_path.write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
