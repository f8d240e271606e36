"""Run the tests that know what works together, and write docs/compatibility.md from what they found.

    python tools/compatibility_page.py            # run the tests, write docs/compatibility.json and the page
    python tools/compatibility_page.py --render   # the page alone, from the JSON that is there
    python tools/compatibility_page.py --check    # exit status 1 if the page is not what the JSON says

Every test that calls the `compatibility` fixture of tests/conftest.py adds to a section; list its file here.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "docs" / "compatibility.json", ROOT / "docs" / "compatibility.md"
TESTS = (
    "tests/test_compatibility.py",
    "tests/test_golden.py::test_logits_and_greedy_tokens_are_the_references",
    "tests/test_prune_exactness.py",
)

Table = dict[str, dict[str, str]]

INTRODUCTION = """\
# What works together

Written by `tools/compatibility_page.py` from the results of the tests; do not edit. A test fails when a run
finds something else than this page says.

For each family a small random model with every kind of layer is made by the family's own class (mlx-lm's, or
mach's for deepseek_v4), quantised by mlx-lm's `quantize_model`, sliced by mach-prune, and asked for 8
greedy tokens after a prompt of 40: longer than the sliding windows, and long enough for the scratch arena.
Streaming modes have the smallest bank there is, one token's experts in every layer. All on MLX's CPU backend
in float32; nothing here was run on Metal or CUDA.

| cell | meaning |
|---|---|
| = mlx-lm | token for token what mlx-lm's own model gives for the same weights, widened to float32 |
| = mlx-lm, repaired | the same where mlx-lm's model has faults that mach repairs, as the golden logits show |
| = unswapped | the same with mach's own model, its experts in memory as they are |
| …, bf16 values | the same for a checkpoint that holds the experts' values as bfloat16 (note) |
| refused ⁿ | an error; the list below its table says which |

Note: mxfp4, mxfp8 and nvfp4 values are exact in bfloat16; affine ones are rounded once, from float32.
"""

HEADINGS = {
    "quantisations": (
        "Families, quantisations and modes",
        "Modes: `--streaming` from an expert sidecar, `--streaming` from slices of a stacked checkpoint,\n"
        "`--no-streaming` (stacked), mlx-lm's own model, and bf16_streaming (`--streaming` with\n"
        "`LME_BF16_STACKED_STREAMING=1`). mach-serve and mach-generate load through the same function.",
    ),
    "layouts": (
        "Layouts and modes",
        "bfloat16 experts. *sliced* is the engine layout, *stacked* an MLX checkpoint, *raw* a published\n"
        "form: experts one by one, or gate and up in one tensor. mach-prune makes sliced ones of the others.",
    ),
    "golden logits": (
        "Golden logits",
        "The largest error of a logit, relative to the largest of its prompt, against Hugging Face\n"
        "transformers in float32 (`tests/golden`): prompts across the sliding window, the rates of\n"
        "compression and the chunk, in one pass and in chunks. Greedy tokens are the reference's wherever\n"
        "its margin exceeds that error.",
    ),
    "mach-prune": (
        "mach-prune",
        "What mach-prune makes of a source, streamed: *= source* gives the source's logits and tokens\n"
        "exactly, *= MLX form* those of the same numbers in an MLX checkpoint, *= sliced by hand* those of\n"
        "the experts that the plan keeps, cut out without mach-prune.",
    ),
}
"""Section → its heading and what there is to know of it; other sections stand under their own names."""

NOTES = """\
## What to know

- `--backend openai` runs mlx-lm's classes as they are, with their faults. On the CPU alone floats are
  widened to float32: MLX's products of experts know no other dtype there. An embedding packed as mxfp4,
  mxfp8 or nvfp4 gives bfloat16 in mlx-lm's models and float32 in the other modes, so that longer texts than
  these may part from theirs.
- bf16_streaming is for comparisons. Floats stay in the bank as they are stored; on the CPU the experts of a
  pass are widened to float32 before it, so that results are those of the other modes.
- Loading a sliced checkpoint reads no expert bytes (`tests/test_loading_reads.py`), unless the bank holds
  every expert: then it is filled at once.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, render or check; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--render", action="store_true", help="write the page from the stored results")
    parser.add_argument("--check", action="store_true", help="compare the page with the stored results")
    options = parser.parse_args(arguments)
    if options.check:
        return check()
    if not options.render:
        command = [sys.executable, "-m", "pytest", "-q", *TESTS]
        # The last test compares the page, which is not written yet, with the results.
        status = subprocess.run(
            [*command, "-k", "not the_page_holds"],
            cwd=ROOT,
            env={**os.environ, "MACH_RECORD_COMPATIBILITY": "1"},
            check=False,
        ).returncode
        if status:
            return status
    PAGE.write_text(page(json.loads(RESULTS.read_text())))
    return 0


def check() -> int:
    """Say on stderr where the page differs from the results; 1 if it does."""
    expected, found = page(json.loads(RESULTS.read_text())), PAGE.read_text()
    if expected == found:
        return 0
    lines = difflib.unified_diff(found.splitlines(), expected.splitlines(), "page", "results", lineterm="")
    print("\n".join(lines), file=sys.stderr)
    print("run tools/compatibility_page.py --render", file=sys.stderr)
    return 1


def page(results: dict[str, Table]) -> str:
    """The page's text."""
    parts = [INTRODUCTION]
    for section, table in results.items():
        heading, text = HEADINGS.get(section, (section.capitalize(), ""))
        parts += [f"## {heading}\n", *([f"{text}\n"] if text else []), _table(table)]
    return "\n".join([*parts, NOTES])


def _table(table: Table) -> str:
    """Rows `family, rest` as a Markdown table, with the refusals' reasons in a list below."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    reasons: list[str] = []
    lines = [f"| | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 1)]
    for name, row in table.items():
        cells = [_cell(row.get(column, "not tested"), reasons) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))]
    return "\n".join(lines).rstrip() + "\n"


def _cell(outcome: str, reasons: list[str]) -> str:
    refused, _, reason = outcome.partition("refused: ")
    if refused or not reason:
        return outcome
    if reason not in reasons:
        reasons.append(reason)
    return f"refused {_superscript(reasons.index(reason) + 1)}"


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


if __name__ == "__main__":
    sys.exit(main())
