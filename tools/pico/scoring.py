"""Read the evaluation prompts and score what a model said to them.

Owns the meaning of "right": the name is equal, the arguments are equal, the JSON is valid, and nothing else
was called. Knows no framework; probe.py (PyTorch) and evaluate.py (MLX) generate the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("eval")
SETS = ("trained", "unseen", "written", "plain")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One prompt. `call` is the expected call, or None where no call is right."""

    kind: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    call: dict[str, Any] | None


def cases(name: str) -> Iterator[Case]:
    """The cases of one set; a file holds each tool's function without its wrapper."""
    with (FOLDER / f"{name}.jsonl").open() as lines:
        for line in lines:
            record = json.loads(line)
            tools = [{"type": "function", "function": function} for function in record.pop("tools")]
            yield Case(**record, tools=tools)


def called(text: str) -> dict[str, Any] | None:
    """The only call in `text` as {"name", "arguments"}; None for no call, several, or no valid JSON."""
    found = re.findall(r"<tool_call>(.*?)</tool_call>", text, re.DOTALL)
    if len(found) != 1:
        return None
    try:
        call = json.loads(found[0])
    except ValueError:
        return None
    return call if isinstance(call, dict) and set(call) == {"name", "arguments"} else None


def score(name: str, texts: list[str]) -> dict[str, float | int]:
    """Shares over the first len(texts) cases of one set, and for each share what guessing would give.

    `chance_name` is the share of a guesser that names one of the offered tools at random; `chance_exact` is
    the same guesser with every argument right, so it is an upper bound for guessing a whole call.
    """
    every = list(cases(name))[: len(texts)]
    if name == "plain":
        silent = sum("<tool_call>" not in text for text in texts)
        return {"cases": len(every), "without_call": silent / len(every)}
    calls = [called(text) for text in texts]
    pairs = [(case.call, call) for case, call in zip(every, calls, strict=True)]
    guess = sum(1 / len(case.tools) for case in every) / len(every)
    several = [pair for case, pair in zip(every, pairs, strict=True) if len(case.tools) > 1]
    choice = [1 / len(case.tools) for case in every if len(case.tools) > 1]
    return {
        "cases": len(every),
        "valid_json": sum(call is not None for call in calls) / len(every),
        "name": sum(call is not None and call["name"] == want["name"] for want, call in pairs) / len(every),
        "exact": sum(call == want for want, call in pairs) / len(every),
        "chance_name": guess,
        "chance_exact": guess,
        "cases_with_choice": len(several),
        "name_with_choice": sum(call is not None and call["name"] == want["name"] for want, call in several)
        / max(len(several), 1),
        "exact_with_choice": sum(call == want for want, call in several) / max(len(several), 1),
        "chance_with_choice": sum(choice) / max(len(choice), 1),
    }
