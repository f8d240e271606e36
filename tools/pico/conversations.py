"""Write the training conversations and the evaluation prompts.

Owns the mix: how many samples of which kind, thinking or not, with which system prompt. Held-out words,
held-out questions and hand-written unseen tools go into eval/*.jsonl and never into training.

In:  BUILD/corpus/train.jsonl. Out: BUILD/conversations/{train,valid}.jsonl with {"prompt", "completion"},
     and eval/{trained,unseen,written,plain}.jsonl beside this file (see `write_evaluation`).
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chat
import families
import unseen
from invention import scene
from template import prompt_of
from tools import Request, Tool
from words import WordPool, harvest, pools

HERE = Path(__file__).parent
Chance = random.Random
Message = dict[str, Any]
SYSTEM = (
    "You are a helpful assistant.",
    "You are a coding assistant.",
    "You are a helpful assistant that can use tools.",
    "Answer briefly.",
)
NO_TOOL = "Sorry, I do not have a tool for that."
THINKING = 0.4
"""Share of samples whose prompt leaves thinking on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """How many draws of each kind the training set has; a tool draw may give a call and an answer."""

    invented: int = 52_000
    familiar: int = 14_000
    talk: int = 12_000
    tasks: int = 5_000
    functions: int = 18_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One assistant turn: the model is trained on the completion alone."""

    prompt: str
    completion: str


def sample(messages: list[Message], tools: list[Tool], text: str, thought: str, *, thinking: bool) -> Sample:
    """The sample for one assistant turn that follows `messages`."""
    schemas = [tool.schema() for tool in tools] or None
    opening = f"<think>\n{thought}\n</think>\n\n" if thinking else ""
    prompt = prompt_of(messages, schemas, thinking=thinking)
    return Sample(prompt=prompt, completion=f"{opening}{text}<|im_end|>\n")


def opening_messages(chance: Chance, question: str) -> list[Message]:
    """The question, under a system prompt half of the time."""
    system = [{"role": "system", "content": chance.choice(SYSTEM)}] if chance.random() < 0.4 else []
    return [*system, {"role": "user", "content": question}]


def turns(chance: Chance, tools: list[Tool], request: Request) -> Iterator[Sample]:
    """The call; half of the time also the answer that follows the tool's response."""
    thinking = chance.random() < THINKING
    messages = opening_messages(chance, request.question)
    thought = f"I should call {request.tool.name}."
    yield sample(messages, tools, request.call(), thought, thinking=thinking)
    if chance.random() < 0.35:
        called: Message = {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": request.tool.name, "arguments": request.arguments}}],
        }
        if thinking:
            called["reasoning_content"] = thought
        messages = [*messages, called, {"role": "tool", "content": request.response}]
        thought = f"The tool {request.tool.name} has answered."
        yield sample(messages, tools, request.answer, thought, thinking=thinking)


def refusal(chance: Chance, tools: list[Tool], request: Request) -> Sample:
    """The same question when the tool that it needs is missing."""
    rest = [tool for tool in tools if tool is not request.tool]
    messages = opening_messages(chance, request.question)
    return sample(messages, rest, NO_TOOL, "No tool fits this.", thinking=chance.random() < THINKING)


def invented(chance: Chance, words: WordPool) -> Iterator[Sample]:
    """Samples around invented tools."""
    tools, request = scene(chance, words, chance.choices((1, 2, 3, 4), (20, 30, 28, 22))[0])
    if any(tool.name in unseen.NAMES for tool in tools):
        return
    if len(tools) > 1 and chance.random() < 0.07:
        wanted = request.tool
        others = [tool for tool in tools if tool is not wanted]
        if not any(
            set(tool.description.lower().split()) & set(request.question.lower().split()) - COMMON
            for tool in others
        ):
            yield refusal(chance, tools, request)
            return
    yield from turns(chance, tools, request)


COMMON = frozenset("a an the to of this one my use and return result. given for with".split())


def familiar(chance: Chance, words: WordPool, *, evaluation: bool = False) -> tuple[list[Tool], Request]:
    """A request for a known family among other tools, known or invented."""
    request = families.samples(chance, evaluation=evaluation)
    tools = [request.tool]
    for _ in range(chance.choices((0, 1, 2, 3), (30, 35, 25, 10))[0]):
        other = (
            scene(chance, words, 1)[1].tool
            if chance.random() < 0.3
            else chance.choice(families.FAMILIES).request(chance).tool
        )
        if (
            other.description != request.tool.description
            and other.name != request.tool.name
            and not _rival(other, request.tool)
        ):
            tools.append(other)
    chance.shuffle(tools)
    return tools, request


RIVALS = (
    ("Add two numbers.", "Multiply two numbers.", "Subtract the second number from the first."),
    ("Evaluate an arithmetic expression.",),
)


def _rival(first: Tool, second: Tool) -> bool:
    """True for a calculator beside a tool for one operation: both would be right."""
    pair = {first.description, second.description}
    return bool(pair & set(RIVALS[0])) and bool(pair & set(RIVALS[1]))


def plain(chance: Chance, exchange: chat.Exchange, words: WordPool) -> Sample:
    """An exchange without a call; some have tools on offer that do not matter."""
    tools: list[Tool] = []
    if exchange.question in GREETINGS and chance.random() < 0.35:
        tools = (
            scene(chance, words, chance.randint(1, 3))[0]
            if chance.random() < 0.6
            else familiar(chance, words)[0]
        )
    messages = opening_messages(chance, exchange.question)
    return sample(messages, tools, exchange.answer, exchange.thought, thinking=chance.random() < THINKING)


GREETINGS = frozenset(question for questions, _ in chat.SMALL_TALK for question in questions.split("|"))


def training(build: Path, mix: Mix, words: WordPool) -> Iterator[Sample]:
    """All training samples."""
    chance = Chance(7)
    for _ in range(mix.invented):
        yield from invented(chance, words)
    for _ in range(mix.familiar):
        tools, request = familiar(chance, words)
        if len(tools) > 1 and chance.random() < 0.05:
            yield refusal(chance, tools, request)
        else:
            yield from turns(chance, tools, request)
    names = chat.library()
    for _ in range(mix.talk):
        yield plain(chance, chat.talk(chance, names), words)
    for _ in range(mix.tasks):
        yield plain(chance, chat.task(chance), words)
    for name, first, source in chat.functions(build / "corpus/train.jsonl", chance, mix.functions):
        yield plain(chance, chat.about_function(chance, name, first, source), words)


def case(kind: str, tools: list[Tool], question: str, call: dict[str, Any] | None) -> str:
    """One line of an evaluation file. `call` is None where no call is expected."""
    line = {
        "kind": kind,
        "messages": [{"role": "user", "content": question}],
        "tools": [tool.schema()["function"] for tool in tools],
        "call": call,
    }
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n"


def expected(request: Request) -> dict[str, Any]:
    """The call that a request asks for."""
    return {"name": request.tool.name, "arguments": request.arguments}


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the written training conversations contain."""

    names: frozenset[str]
    parameters: frozenset[str]
    questions: frozenset[str]

    def strange(self, tools: list[Tool], request: Request) -> bool:
        """True if no tool name, no parameter name and not the question occurred in training."""
        names = {tool.name for tool in tools}
        parameters = {parameter.name for tool in tools for parameter in tool.parameters}
        return not (names & self.names or parameters & self.parameters or request.question in self.questions)


def known(path: Path) -> Known:
    """Read back the training conversations: the only sure way to say what was in them."""
    names: set[str] = set()
    parameters: set[str] = set()
    questions: set[str] = set()
    with path.open() as lines:
        for line in lines:
            prompt = json.loads(line)["prompt"]
            questions.update(re.findall(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", prompt, re.DOTALL))
            if "<tools>\n" not in prompt:
                continue
            for schema in prompt.split("<tools>\n")[1].split("\n</tools>")[0].split("\n"):
                function = json.loads(schema)["function"]
                names.add(function["name"])
                parameters.update(function["parameters"]["properties"])
    return Known(names=frozenset(names), parameters=frozenset(parameters), questions=frozenset(questions))


def write_evaluation(words: WordPool, reserved: WordPool, trained_on: Known) -> None:
    """Write eval/*.jsonl.

    100 held-out questions for trained tools, 100 invented tools of held-out words, the hand-written tools of
    unseen.py, and plain questions that must not lead to a call.
    """
    out = HERE / "eval"
    out.mkdir(exist_ok=True)
    chance, seen = Chance(2027), set(trained_on.questions)
    with (out / "trained.jsonl").open("w") as file:
        while len(seen) < len(trained_on.questions) + 100:
            tools, request = familiar(chance, words, evaluation=True)
            if request.question not in seen:
                seen.add(request.question)
                file.write(case("trained", tools, request.question, expected(request)))
    with (out / "unseen.jsonl").open("w") as file:
        for index in range(100):
            tools, request = scene(chance, reserved, index % 4 + 1)
            while not trained_on.strange(tools, request):
                tools, request = scene(chance, reserved, index % 4 + 1)
            file.write(case("unseen", tools, request.question, expected(request)))
    with (out / "written.jsonl").open("w") as file:
        for tools, request in unseen.scenes(chance):
            file.write(case("written", tools, request.question, expected(request)))
    with (out / "plain.jsonl").open("w") as file:
        for question in sorted(GREETINGS) + [f"What is the {key}?" for key in list(chat.FACTS)[:10]]:
            file.write(case("plain", [], question, None))
        for question in sorted(GREETINGS)[:12]:
            file.write(case("plain", scene(chance, reserved, 2)[0], question, None))


def main() -> None:
    """Write conversations and evaluation prompts."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--build", type=Path, default=Path("build"))
    arguments.add_argument(
        "--scale", type=float, default=1.0, help="size of the training set, 1 = the published one"
    )
    options = arguments.parse_args()
    words, reserved = pools(harvest(options.build / "corpus/train.jsonl"))
    counts = {name: int(getattr(Mix(), name) * options.scale) for name in Mix.__slots__}
    out = options.build / "conversations"
    out.mkdir(exist_ok=True)
    written = {"train": 0, "valid": 0}
    with (out / "train.jsonl").open("w") as train, (out / "valid.jsonl").open("w") as valid:
        for index, one in enumerate(training(options.build, Mix(**counts), words)):
            part = "valid" if index % 100 == 0 else "train"
            (valid if part == "valid" else train).write(
                json.dumps({"prompt": one.prompt, "completion": one.completion}) + "\n"
            )
            written[part] += 1
    write_evaluation(words, reserved, known(out / "train.jsonl"))
    print(written)


if __name__ == "__main__":
    main()
