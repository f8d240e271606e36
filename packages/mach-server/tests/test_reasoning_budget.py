"""Tokens here are the indices of their texts."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from mach_server.answer.events import ReasoningDelta
from mach_server.answer.formats import AnswerFormat, format_of, reasoning_reader
from mach_server.answer.think_tags import Opening
from mach_server.reasoning_budget import ReasoningBudget

TEXTS = ["<think>", "</think>", "</", "think", ">", "a", " ", "\n", "<|channel|>", "analysis", "<|message|>"]
TEXTS += ["<|end|>", "<|channel>thought", "<channel|>", "final", *(f"w{n} " for n in range(30))]
QWEN = format_of("qwen3_moe", "<think><tool_call>")
GEMMA = format_of("gemma4", None)
HARMONY = format_of("gpt_oss", None)


class Texts:
    def feed(self, token: int) -> str:
        return TEXTS[token]

    def finish(self) -> str:
        return ""


class Only:
    """Allows given tokens, and remembers what it was told."""

    free_ahead = finished = False

    def __init__(self, *allowed: int) -> None:
        self.allowed, self.told = allowed, []

    def mask(self) -> np.ndarray:
        words = np.zeros(-(-len(TEXTS) // 32), dtype=np.uint32)
        for token in self.allowed:
            words[token // 32] |= np.uint32(1 << token % 32)
        return words.view(np.int32)

    def accept(self, token: int) -> None:
        self.told.append(token)

    def rollback(self, tokens: int) -> None:
        del self.told[-tokens:]


def ids(*texts: str) -> list[int]:
    return [TEXTS.index(text) for text in texts]


def budget_of(
    budget: int, form: AnswerFormat, opening: Opening, closing: Sequence[str] = (), inner: Only | None = None
) -> ReasoningBudget:
    return ReasoningBudget(
        budget,
        ids(*(closing or [form.closing])),
        Texts,
        lambda: reasoning_reader(form, opening),
        vocabulary_size=len(TEXTS),
        inner=inner,
    )


def allowed(constraint: ReasoningBudget) -> set[int] | None:
    mask = constraint.mask()
    if mask is None:
        return None
    return {token for token in range(len(TEXTS)) if int(mask[token // 32]) >> token % 32 & 1}


def answer(constraint: ReasoningBudget, wanted: Sequence[int]) -> list[int]:
    """The tokens of a model that wants `wanted`, one after another, and takes what it must."""
    made = []
    for token in wanted:
        must = allowed(constraint)
        made.append(token if must is None or token in must else min(must))
        constraint.accept(made[-1])
    return made


def reasoning_tokens(form: AnswerFormat, opening: Opening, tokens: Sequence[int]) -> int:
    """How many tokens brought reasoning that the client sees, the closing tag's apart."""
    reader = reasoning_reader(form, opening)
    events = [event for token in tokens for event in reader.feed(TEXTS[token])] + reader.finish()
    text = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    return len(text.split())


def test_the_closing_tag_is_forced_when_the_budget_is_spent() -> None:
    made = answer(budget_of(3, QWEN, Opening.REASONING), ids(*["a"] * 6))
    assert made == ids("a", "a", "a", "</think>", "a", "a")


def test_reasoning_that_ends_by_itself_is_left_alone() -> None:
    wanted = ids("a", "</think>", *["a"] * 9)
    assert answer(budget_of(3, QWEN, Opening.REASONING), wanted) == wanted


def test_an_answer_that_does_not_reason_has_no_bound_and_one_that_begins_to_has() -> None:
    assert answer(budget_of(1, QWEN, Opening.EITHER), ids(*["a"] * 9)) == ids(*["a"] * 9)
    wanted = ids("\n", "<think>", "a", "a", "a", "a")
    assert answer(budget_of(2, QWEN, Opening.EITHER), wanted) == ids(
        "\n", "<think>", "a", "a", "</think>", "a"
    )


def test_a_closing_tag_of_several_tokens_is_forced_one_by_one() -> None:
    constraint = budget_of(2, QWEN, Opening.REASONING, ("</", "think", ">"))
    assert answer(constraint, ids(*["a"] * 7)) == ids("a", "a", "</", "think", ">", "a", "a")


def test_reasoning_that_begins_again_has_what_is_left() -> None:
    begin, end = "<|channel>thought", "<channel|>"
    wanted = ids(begin, "a", "a", end, "a", begin, "a", "a", "a", "a")
    made = answer(budget_of(3, GEMMA, Opening.EITHER), wanted)
    assert made == ids(begin, "a", "a", end, "a", begin, "a", end, "a", "a")


def test_harmony_s_analysis_is_bounded() -> None:
    wanted = ids("<|channel|>", "analysis", "<|message|>", *["a"] * 4, "a")
    made = answer(budget_of(2, HARMONY, Opening.CONTENT), wanted)
    assert made == ids("<|channel|>", "analysis", "<|message|>", "a", "a", "<|end|>", "a", "a")


def test_another_constraint_goes_first_and_is_told_everything() -> None:
    (a,), (end,) = ids("a"), ids("</think>")
    inner = Only(a)
    constraint = budget_of(2, QWEN, Opening.REASONING, inner=inner)
    assert answer(constraint, [a] * 4) == [a] * 4  # the tag would break the other's form
    inner.allowed = (a, end)
    assert answer(constraint, [a, a]) == [end, a]
    assert inner.told == [a] * 4 + [end, a]
    assert not constraint.free_ahead


@pytest.mark.parametrize(
    ("form", "opening"),
    [(QWEN, Opening.REASONING), (QWEN, Opening.EITHER), (GEMMA, Opening.EITHER), (HARMONY, Opening.CONTENT)],
)
def test_whatever_the_model_writes_the_budget_holds_and_looking_ahead_is_safe(
    form: AnswerFormat, opening: Opening
) -> None:
    choice = random.Random(1)
    for _ in range(300):
        budget = choice.randint(1, 6)
        constraint = budget_of(budget, form, opening)
        made: list[int] = []
        for _ in range(30):
            free = constraint.free_ahead
            must = allowed(constraint)
            token = choice.choice([*range(len(TEXTS))] if must is None else [*must])
            made.append(token)
            constraint.accept(token)
            # Asked before `token` was known, and so true of the token after it.
            assert not free or allowed(constraint) is None
        back = choice.randint(1, 29)
        constraint.rollback(back)
        again = budget_of(budget, form, opening)
        for token in made[:-back]:
            again.accept(token)
        assert allowed(constraint) == allowed(again)


def test_words_of_reasoning_never_exceed_the_budget() -> None:
    choice = random.Random(2)
    words = [n for n, text in enumerate(TEXTS) if text.startswith("w")]
    for _ in range(300):
        budget = choice.randint(1, 6)
        constraint = budget_of(budget, QWEN, Opening.REASONING)
        made = answer(constraint, [choice.choice(words) for _ in range(20)])
        assert reasoning_tokens(QWEN, Opening.REASONING, made) == budget


BODY = {
    "model": "mach-pico",
    "max_tokens": 200,
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
}


def test_a_server_ends_the_reasoning_of_an_answer(server) -> None:
    def ask(budget: int | None, **fields: object) -> dict:
        thinking = {"type": "enabled"} | ({} if budget is None else {"budget_tokens": budget})
        answer = server.client.post(
            "/messages", json={**BODY, "temperature": 0, "thinking": thinking} | fields
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    free = ask(None, max_tokens=60)
    natural = free["usage"]["output_tokens_details"]["thinking_tokens"]
    assert natural > 4 and free["content"][0]["type"] == "thinking"
    bounded = ask(4, max_tokens=60)
    assert 0 < bounded["usage"]["output_tokens_details"]["thinking_tokens"] <= 5  # the tag is the fifth
    assert free["content"][0]["thinking"].startswith(bounded["content"][0]["thinking"])
    assert [block["type"] for block in bounded["content"]] == ["thinking", "text"]
    ahead = server.stats()["last_request"]["looked_ahead_tokens"]
    assert ahead >= bounded["usage"]["output_tokens"] - 6  # only near the budget's end it cannot look ahead
    assert ask(natural + 1, max_tokens=60)["content"] == free["content"]
    assert ask(60, max_tokens=60)["content"] == free["content"]


@pytest.mark.parametrize(
    "thinking", [{"type": "enabled", "budget_tokens": 0}, {"type": "adaptive", "budget_tokens": 9}]
)
def test_a_budget_that_means_nothing_is_refused(server, thinking: dict) -> None:
    answer = server.client.post("/messages", json={**BODY, "thinking": thinking})
    assert answer.status_code == 400 and "thinking.budget_tokens" in answer.json()["error"]["message"]
