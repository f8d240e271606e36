from types import SimpleNamespace

import numpy as np
import pytest

from mach_decode.errors import PromptTooLongError, SamplingError
from mach_decode.generation import Generation
from mach_decode.request import GenerationRequest

ANSWER = "one two three: 'four'\n\n    five — sixß 七 🙂 eight nine ten"


@pytest.fixture
def script(tokenizer) -> list[int]:
    return tokenizer.encode(ANSWER, add_special_tokens=False)


def run(engine, **fields):
    """Every event of an answer, and its text."""
    events = list(engine.generate(GenerationRequest(**{"prompt": (5,)} | fields)))
    assert all(event.finish_reason is None and event.figures is None for event in events[:-1])
    assert events[-1].finish_reason is not None
    assert events[-1].figures is not None
    return events, "".join(event.text for event in events)


def test_the_answer_is_the_decoded_tokens(scripted, script, tokenizer) -> None:
    events, text = run(scripted(script), max_tokens=len(script))
    assert [event.token for event in events] == script
    assert text == tokenizer.decode(script)
    assert events[-1].finish_reason == "length"


def test_the_end_token_ends_the_answer_and_is_not_part_of_it(scripted, script, tokenizer) -> None:
    end = 3
    events, text = run(scripted([*script[:6], end, *script[6:]], end_tokens=(end,)), max_tokens=400)
    assert text == tokenizer.decode(script[:6])
    assert events[-1].token == end
    assert events[-1].finish_reason == "stop"
    assert events[-1].figures.completion_tokens == 7


def test_an_end_token_at_once_gives_an_empty_answer(scripted) -> None:
    events, text = run(scripted([3], end_tokens=(3,)))
    assert (text, len(events), events[-1].finish_reason) == ("", 1, "stop")


@pytest.mark.parametrize("stop", ["three", ": 'f", "\n\n    f", " 七", "🙂", "ß 七 🙂", "o", "ten"])
def test_a_stop_string_ends_the_answer_before_it_wherever_tokens_end(scripted, script, stop) -> None:
    events, text = run(scripted(script), stop=("never there", stop), max_tokens=len(script))
    assert text == ANSWER[: ANSWER.index(stop)]
    assert events[-1].finish_reason == "stop"
    assert events[-1].figures.completion_tokens <= len(script)


def test_text_held_back_for_a_stop_string_comes_when_the_answer_ends(scripted, script) -> None:
    _, text = run(scripted(script), stop=("ten thousand",), max_tokens=len(script))
    assert text == ANSWER
    end = 3
    _, text = run(scripted([*script, end], end_tokens=(end,)), stop=("ten thousand",))
    assert text == ANSWER


def test_a_stop_string_that_the_last_token_completes_counts_as_a_stop(scripted, script) -> None:
    events, text = run(scripted(script), stop=("nine ten",), max_tokens=len(script))
    assert text == ANSWER.removesuffix("nine ten")
    assert events[-1].finish_reason == "stop"


@pytest.mark.parametrize("max_tokens", [1, 2, 7])
def test_max_tokens_is_the_number_of_tokens_generated(scripted, script, tokenizer, max_tokens) -> None:
    engine = scripted(script)
    events, text = run(engine, max_tokens=max_tokens)
    assert text == tokenizer.decode(script[:max_tokens])
    assert events[-1].finish_reason == "length"
    assert events[-1].figures.completion_tokens == max_tokens == len(engine.model.passes)


def test_the_context_limits_the_answer(scripted, script) -> None:
    events, _ = run(scripted(script, prompt=4, context_length=10), prompt=(1, 2, 3, 4), max_tokens=1000)
    assert events[-1].figures.completion_tokens == 6
    events, _ = run(scripted(script, prompt=4, context_length=10), prompt=(1, 2, 3, 4))
    assert events[-1].figures.completion_tokens == 6
    assert events[-1].finish_reason == "length"


def test_a_prompt_that_fills_the_context_is_refused(scripted, script) -> None:
    engine = scripted(script, context_length=10)
    with pytest.raises(PromptTooLongError, match="10 tokens, but the context holds 10 .*shorten") as caught:
        run(engine, prompt=(1,) * 10)
    assert (caught.value.prompt_tokens, caught.value.context_length) == (10, 10)
    assert engine.model.passes == []
    events, _ = run(scripted(script, prompt=9, context_length=10), prompt=(1,) * 9)
    assert events[-1].figures.completion_tokens == 1


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        (dict(prompt=()), "prompt"),
        (dict(prompt=(1, -1)), "prompt"),
        (dict(prompt=(1, 1 << 40)), "prompt"),
        (dict(max_tokens=0), "max_tokens"),
        (dict(max_tokens=-3), "max_tokens"),
        (dict(stop=("a", "")), "stop"),
    ],
)
def test_a_request_that_cannot_be_answered_names_what_is_wrong(scripted, script, fields, parameter) -> None:
    engine = scripted(script)
    with pytest.raises(SamplingError, match=parameter) as caught:
        run(engine, **fields)
    assert caught.value.parameter == parameter
    assert engine.model.passes == []


@pytest.mark.parametrize(
    ("length", "chunk", "passes"),
    [(1, 4, []), (2, 4, [1]), (5, 4, [4]), (6, 4, [4, 1]), (9, 4, [4, 4]), (9, 1, [1] * 8)],
)
def test_prefill_takes_all_but_the_last_token_chunk_by_chunk(scripted, script, length, chunk, passes) -> None:
    engine = scripted(script, prompt=length, prefill_chunk=chunk)
    events, _ = run(engine, prompt=tuple(range(1, length + 1)), max_tokens=3)
    assert engine.model.passes == [*passes, 1, 1, 1]
    assert [event.prefilled for event in events][-3:] == [length] * 3
    assert [event.prefilled for event in events][: len(passes)] == [
        sum(passes[: i + 1]) for i in range(len(passes))
    ]
    assert all(event.token is None and event.text == "" for event in events[: len(passes)])


def test_a_finished_generation_knows_its_tokens(scripted, script) -> None:
    generation = Generation(scripted(script), GenerationRequest(prompt=(1,), max_tokens=3))
    while not generation.finished:
        generation.step()
    assert generation.tokens == script[:3]


def test_figures_count_tokens_and_seconds(scripted, script) -> None:
    events, _ = run(scripted(script, prompt=3), prompt=(1, 2, 3), max_tokens=5)
    figures = events[-1].figures
    assert (figures.prompt_tokens, figures.completion_tokens) == (3, 5)
    assert 0 < figures.first_token_seconds
    assert 0 < figures.decode_seconds
    assert figures.prompt_tokens_per_second > 0
    assert figures.decode_tokens_per_second > 0


def test_a_stop_string_s_tokens_have_no_logprobs_and_all_others_do(scripted, script, tokenizer) -> None:
    text = ANSWER[: ANSWER.index(" five")]
    for stop, expected in ((" five", text), ("never there", ANSWER)):
        events, given = run(scripted(script), stop=(stop,), max_tokens=len(script), logprobs=1)
        entries = [entry for event in events for entry in event.logprobs]
        assert given == expected
        assert [entry.token for entry in entries] == script[: len(entries)]
        assert tokenizer.decode([entry.token for entry in entries]) == expected
        assert all(entry.top[0] == (entry.token, entry.logprob) for entry in entries)
        assert events[-1].stop == (stop if expected is text else None)


def test_offsets_of_logprobs_are_places_in_the_text(scripted, script, tokenizer) -> None:
    events, text = run(scripted(script), max_tokens=len(script), logprobs=0)
    for event in events:
        for entry in event.logprobs:
            piece = tokenizer.decode([entry.token])
            if "\ufffd" not in piece:
                assert text[entry.offset :].startswith(piece)


def test_an_end_token_has_no_logprobs(scripted, script) -> None:
    events, _ = run(scripted([*script[:2], 3], end_tokens=(3,)), logprobs=0)
    assert [entry.token for event in events for entry in event.logprobs] == script[:2]


class OnlyThese:
    """Allows at each place one of the tokens given for it, and then the end."""

    free_ahead = False

    def __init__(self, places: list[set[int]], end: int, vocabulary: int) -> None:
        self._places, self._vocabulary = [*places, {end}], vocabulary
        self.accepted: list[int] = []

    @property
    def finished(self) -> bool:
        return len(self.accepted) == len(self._places)

    def mask(self) -> np.ndarray:
        assert not self.finished
        mask = np.zeros((self._vocabulary + 31) // 32, np.uint32)
        for token in self._places[len(self.accepted)]:
            mask[token // 32] |= np.uint32(1 << token % 32)
        return mask.view(np.int32)

    def accept(self, token: int) -> None:
        assert token in self._places[len(self.accepted)]
        self.accepted.append(token)

    def rollback(self, tokens: int) -> None:
        del self.accepted[len(self.accepted) - tokens :]


def test_a_constraint_is_asked_before_and_told_after_every_token(scripted, script, tokenizer) -> None:
    engine = scripted(script, end_tokens=(3,))
    places = [{script[0], 31, 32}, {63, 64}, {len(tokenizer) - 1}]
    constraint = OnlyThese(places, 3, len(tokenizer))
    events, _ = run(engine, constraint=constraint)
    tokens = [event.token for event in events]
    assert tokens[0] == script[0]
    assert all(token in place for token, place in zip(tokens, [*places, {3}], strict=True))
    assert constraint.accepted == tokens and constraint.finished
    assert events[-1].figures.looked_ahead == 0


class Forbids:
    """Allows any token but the script's at one place of an answer."""

    finished = False

    def __init__(self, place: int, vocabulary: int) -> None:
        self._place, self._vocabulary = place, vocabulary
        self.accepted: list[int] = []

    @property
    def free_ahead(self) -> bool:
        return len(self.accepted) + 1 != self._place

    def mask(self) -> np.ndarray | None:
        if len(self.accepted) != self._place:
            return None
        mask = np.zeros((self._vocabulary + 31) // 32, np.uint32)
        mask[2] = 1
        return mask.view(np.int32)

    def accept(self, token: int) -> None:
        self.accepted.append(token)


def test_passes_are_queued_ahead_where_a_constraint_needs_no_mask(scripted, script, tokenizer) -> None:
    free = run(scripted(script), max_tokens=6)[0][-1].figures.looked_ahead
    events, _ = run(scripted(script), constraint=Forbids(3, len(tokenizer)), max_tokens=6)
    assert [event.token for event in events[:4]] == [*script[:3], 64]
    assert events[-1].figures.looked_ahead == (free - 1 if free else 0)


def test_tokens_without_any_text_are_told_with_the_last_event(scripted, script, monkeypatch) -> None:
    silent = SimpleNamespace(feed=lambda token: "", finish=lambda: "")
    monkeypatch.setattr("mach_decode.generation.text_stream", lambda tokenizer: silent)
    events, text = run(scripted(script), max_tokens=3, logprobs=0)
    assert text == ""
    assert [len(event.logprobs) for event in events] == [0, 0, 3]
