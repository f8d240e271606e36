import mlx.core as mx
import numpy as np
import pytest

from mach_decode.engine import Engine, EngineConfig
from mach_decode.logprobs import LogprobQueue, MeasuredLogprobs, TokenLogprob
from mach_decode.request import GenerationRequest
from mach_decode.sampling import SamplingParams


def reference(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("top", [0, 1, 5, 20, 64])
def test_measured_logprobs_are_those_of_float64(top: int) -> None:
    logits = np.random.default_rng(2).normal(0, 4, (7, 40)).astype(np.float32)
    tokens = np.arange(7) * 3
    entries = MeasuredLogprobs(mx.array(logits), mx.array(tokens), top).values()
    expected = reference(logits)
    for row, entry in enumerate(entries):
        assert entry.token == tokens[row]
        assert entry.logprob == pytest.approx(expected[row, tokens[row]], abs=1e-5)
        order = np.argsort(-expected[row])[:top]
        assert [token for token, _ in entry.top] == order.tolist()
        assert [value for _, value in entry.top] == pytest.approx(expected[row][order].tolist(), abs=1e-5)


def test_entries_come_with_the_text_they_begin_in() -> None:
    queue = LogprobQueue()
    entries = []
    for token, characters in enumerate([3, 0, 1, 2]):
        entries.append(TokenLogprob(token=token, logprob=-1.0, offset=queue.offset))
        queue.feed(entries[-1], characters)
    assert [entry.offset for entry in entries] == [0, 3, 3, 4]
    assert queue.release(0) == ()
    assert queue.release(2) == (entries[0],)
    assert queue.release(1) == ()
    assert queue.release(1) == (entries[1], entries[2])
    assert queue.flush() == (entries[3],)
    assert queue.flush() == ()


def run(engine: Engine, **fields):
    return list(engine.generate(GenerationRequest(**fields)))


@pytest.mark.parametrize("residency", ["streaming", "stacked"])
def test_an_answer_s_logprobs_are_those_of_one_pass_over_all_of_it(
    open_engine, stacked, sliced, residency: str
) -> None:
    directory = stacked if residency == "stacked" else sliced
    engine = open_engine(None, directory, expert_residency=residency)
    prompt = tuple(range(200, 230))
    bias = SamplingParams(temperature=1.5, seed=4, top_k=9, logit_bias=((300, 4.0),))
    events = run(engine, prompt=prompt, max_tokens=12, sampling=bias, logprobs=4, prompt_logprobs=2)
    entries = [entry for event in events for entry in event.logprobs]
    prompt_entries = [entry for event in events for entry in event.prompt_logprobs]
    answer = [event.token for event in events if event.token is not None]
    assert [entry.token for entry in entries] == answer
    assert [entry.token for entry in prompt_entries] == list(prompt)
    assert prompt_entries[0].logprob is None and prompt_entries[0].top == ()
    whole = [*prompt, *answer]
    logits = engine.model(mx.array([whole]), cache=engine.kv_caches.make())[0]
    expected = reference(np.array(logits.astype(mx.float32)))
    for at, entry in enumerate([*prompt_entries, *entries]):
        if not at:
            continue
        row = expected[at - 1]
        assert entry.logprob == pytest.approx(row[whole[at]], abs=1e-3)
        width = 2 if at < len(prompt) else 4
        assert [value for _, value in entry.top] == pytest.approx(
            np.sort(row)[::-1][:width].tolist(), abs=1e-3
        )


def test_measuring_does_not_change_the_answer_nor_the_look_ahead(open_engine, stacked) -> None:
    engine = open_engine(None, stacked, expert_residency="stacked")
    fields = dict(prompt=(5, 6, 7), max_tokens=8, sampling=SamplingParams(temperature=1.0, seed=2))
    plain, measured = run(engine, **fields), run(engine, **fields, logprobs=3)
    assert [event.token for event in plain] == [event.token for event in measured]
    assert plain[-1].figures.looked_ahead == measured[-1].figures.looked_ahead == 7


def test_a_penalty_turns_the_look_ahead_off(open_engine, stacked) -> None:
    engine = open_engine(None, stacked, expert_residency="stacked")
    for penalty in ("repetition_penalty", "frequency_penalty", "presence_penalty"):
        sampling = SamplingParams(**{penalty: 1.5})
        assert run(engine, prompt=(5,), max_tokens=4, sampling=sampling)[-1].figures.looked_ahead == 0


def test_a_prompt_can_be_measured_without_an_answer(open_engine) -> None:
    engine = open_engine(None)
    prompt = tuple(range(300, 330))
    *_, last = events = run(engine, prompt=prompt, max_tokens=0, prompt_logprobs=1)
    assert last.finish_reason == "length" and last.figures.completion_tokens == 0
    assert last.figures.first_token_seconds > 0 == last.figures.decode_seconds
    entries = [entry for event in events for entry in event.prompt_logprobs]
    answered = run(engine, prompt=prompt, max_tokens=1, prompt_logprobs=1)
    assert entries == [entry for event in answered for entry in event.prompt_logprobs]
    assert len(run(engine, prompt=prompt[:1], max_tokens=0, prompt_logprobs=1)[0].prompt_logprobs) == 1


def test_chunks_do_not_change_what_is_measured(sliced) -> None:
    found = []
    for chunk in (None, 7, 1):
        engine = Engine.load(EngineConfig(checkpoint=str(sliced), prefill_chunk=chunk))
        events = run(engine, prompt=tuple(range(300, 330)), max_tokens=0, prompt_logprobs=0)
        found.append([entry.logprob for event in events for entry in event.prompt_logprobs][1:])
        engine.close()
    assert found[1] == pytest.approx(found[0], abs=1e-4)
    assert found[2] == pytest.approx(found[0], abs=1e-4)
