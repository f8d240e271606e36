import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model

from mach_decode.engine import Engine
from mach_decode.errors import (
    EngineBusyError,
    GenerationCancelledError,
    ResidencyError,
    SamplingError,
    TokenizerError,
)
from mach_decode.request import GenerationRequest
from mach_decode.sampling import SamplingParams
from mach_store.errors import SidecarCorruptionError

PROMPT = tuple(range(100, 160))
LEAST = 6  # two experts in each of three layers


def tokens_of(engine: Engine, **fields) -> list[int]:
    request = GenerationRequest(**{"prompt": PROMPT, "max_tokens": 12} | fields)
    tokens = []
    for event in engine.generate(request):
        if hasattr(engine.store, "check"):
            engine.store.check()
        if event.token is not None:
            tokens.append(event.token)
    return tokens


@pytest.fixture(scope="module")
def expected(stacked) -> list[int]:
    """mlx-lm's own greedy tokens, every expert resident."""
    model, _ = load_model(stacked)
    model.set_dtype(mx.float32)
    return [token for token, _ in generate_step(mx.array(PROMPT), model, max_tokens=12)]


@pytest.mark.parametrize("slots", [LEAST, LEAST + 1, 12, 23, 24, None])
def test_every_bank_size_gives_mlx_lms_tokens(open_engine, expected, slots) -> None:
    engine = open_engine(slots)
    assert engine.store.slots == (slots or 24)
    assert tokens_of(engine) == expected
    assert tokens_of(engine) == expected, "and again, with what the first answer left in the bank"


def test_the_stacked_residency_and_streaming_from_it_give_the_same(
    open_engine, stacked, expected, capsys
) -> None:
    assert tokens_of(open_engine(directory=stacked, expert_residency="stacked")) == expected
    assert capsys.readouterr().err == ""
    assert tokens_of(open_engine(directory=stacked, expert_cache_gb=1.0)) == expected


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_every_prefill_chunk_gives_the_same_tokens(open_engine, expected, chunk) -> None:
    assert tokens_of(open_engine(LEAST, prefill_chunk=chunk)) == expected


@pytest.mark.parametrize(
    ("environment", "dispatch"),
    [
        ({"LME_USE_GATHER_DISPATCH": "0"}, "disk"),
        ({"LME_IN_GRAPH_DISPATCH": "0"}, "gather"),
        ({"LME_CPU_KERNELS": "0"}, "gather"),
        ({"LME_TRANSIENT_MIN_TOKENS": "2", "LME_SCRATCH_EXPERTS": "1"}, "in-graph"),
        ({"LME_TRANSIENT_MIN_TOKENS": "1000"}, "in-graph"),
        ({"LME_READ_THREADS": "1", "LME_VERIFY_READS": "0"}, "in-graph"),
        ({"LME_DECODE_RESIDENCY": "reclaim"}, "in-graph"),
    ],
    ids=str,
)
def test_no_setting_changes_the_tokens(open_engine, expected, monkeypatch, environment, dispatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    engine = open_engine(LEAST + 2)
    assert engine.loaded.dispatch == dispatch
    assert tokens_of(engine) == expected


def test_the_arena_is_given_back_while_tokens_are_decoded_where_that_is_asked_for(
    open_engine, expected, stacked, monkeypatch
) -> None:
    keeping = open_engine(LEAST + 2)
    assert tokens_of(keeping) == expected
    assert keeping.store.stats()["scratch_bytes"] > 0
    monkeypatch.setenv("LME_DECODE_RESIDENCY", "reclaim")
    engine = open_engine(LEAST + 2)
    for answers in (1, 2):
        for event in engine.generate(GenerationRequest(prompt=PROMPT, max_tokens=3)):
            in_use = engine.store.stats()["scratch_bytes"]
            assert (in_use == 0) == (event.token is not None), "in use while the prompt is processed"
        reclaimed = engine.store.stats()["scratch_reclaimed_bytes"]
        assert reclaimed == answers * keeping.store.stats()["scratch_bytes"]
    with pytest.raises(ResidencyError, match="LME_DECODE_RESIDENCY needs --streaming"):
        open_engine(None, stacked, expert_residency="stacked")


@pytest.mark.parametrize("slots", [LEAST, None], ids=["fenced", "host-free"])
def test_the_same_seed_gives_the_same_tokens_and_another_gives_others(open_engine, slots) -> None:
    engine = open_engine(slots)
    sampling = SamplingParams(temperature=1.0, seed=5, top_p=0.95)
    first = tokens_of(engine, sampling=sampling)
    assert tokens_of(engine, sampling=sampling) == first
    assert tokens_of(engine, sampling=SamplingParams(temperature=1.0, seed=6, top_p=0.95)) != first
    # Keyed by position: a longer prompt with the first tokens in it goes on as the first run did.
    longer = tokens_of(engine, prompt=PROMPT + tuple(first[:5]), max_tokens=7, sampling=sampling)
    assert longer == first[5:]


def test_a_repetition_penalty_sees_the_prompt_and_the_answer(open_engine, expected) -> None:
    engine = open_engine()
    punished = tokens_of(engine, sampling=SamplingParams(repetition_penalty=10.0))
    assert punished != expected
    assert not set(punished) & set(PROMPT)
    assert len(set(punished)) == len(punished)


class CancelAt:
    """Says yes from its n-th question on."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("slots", [LEAST, 24], ids=["fenced", "host-free"])
def test_an_answer_cancelled_at_any_moment_frees_the_engine_at_once(open_engine, expected, slots) -> None:
    engine = open_engine(slots, prefill_chunk=40)
    request = GenerationRequest(prompt=PROMPT, max_tokens=6)
    cancelled = finished = 0
    for n in range(0, 60, 3 if slots == LEAST else 1):
        seen: list[int] = []
        try:
            for event in engine.generate(request, CancelAt(n)):
                if event.token is not None:
                    seen.append(event.token)
            finished += 1
        except GenerationCancelledError:
            cancelled += 1
        assert seen == expected[: len(seen)]
        engine.store.check()
        assert all(not layer.pool.pinned for layer in engine.store.layers.values())
        assert engine.store.cancelled() is False
    assert cancelled > 5
    assert finished > 1
    assert tokens_of(engine) == expected


@pytest.mark.parametrize("slots", [12, None], ids=["fenced", "host-free"])
def test_the_length_of_a_chunk_follows_from_the_model_where_kernels_compute_it(
    open_engine, monkeypatch, slots
) -> None:
    assert open_engine(slots).prefill_chunk == 2048
    assert open_engine(slots, prefill_chunk=40).prefill_chunk == 40
    monkeypatch.setenv("LME_CPU_KERNELS", "0")
    assert open_engine(slots).prefill_chunk == (512 if slots else 64)


@pytest.mark.parametrize("slots", [LEAST, None], ids=["fenced", "host-free"])
def test_cancellation_is_asked_inside_a_chunk(open_engine, slots) -> None:
    engine = open_engine(slots)
    asked = []

    def cancelled() -> bool:
        asked.append(len(asked))
        return len(asked) > 2

    with pytest.raises(GenerationCancelledError):
        next(engine.generate(GenerationRequest(prompt=PROMPT), cancelled))
    assert len(asked) == 3, "once before the step, then at the first layers of the only chunk"
    assert engine.store.layers[2].counters.misses == 0


def test_leaving_an_answer_unfinished_frees_the_engine(open_engine, expected) -> None:
    engine = open_engine(LEAST)
    answer = engine.generate(GenerationRequest(prompt=PROMPT, max_tokens=12), lambda: False)
    for _ in range(4):
        next(answer)
    answer.close()
    engine.store.check()
    assert all(not layer.pool.pinned for layer in engine.store.layers.values())
    assert tokens_of(engine) == expected


def test_a_refused_request_leaves_the_engine_as_it_was(open_engine, expected) -> None:
    engine = open_engine(LEAST)
    with pytest.raises(SamplingError):
        tokens_of(engine, prompt=())
    with pytest.raises(SamplingError, match="prompt"):
        tokens_of(engine, prompt=(engine.vocabulary_size,))
    assert tokens_of(engine) == expected


@pytest.mark.parametrize("prefill", [False, True], ids=["in decode", "in prefill"])
def test_a_corrupt_expert_stops_the_answers_that_need_it_and_no_other(
    open_engine, copy_checkpoint, sliced, monkeypatch, prefill
) -> None:
    monkeypatch.setenv("LME_TRANSIENT_MIN_TOKENS", "2" if prefill else "1000")
    prompts = [(token, token) if prefill else (token,) for token in (50, 51, 52, 53)]
    answers, needed = [], []
    for prompt in prompts:
        engine = open_engine(LEAST)
        answers.append(tokens_of(engine, prompt=prompt, max_tokens=1))
        uses = engine.store.expert_map()[1].uses
        needed.append({expert for expert, count in enumerate(uses) if count})
    bad = min(set.union(*needed) - set.intersection(*needed))
    directory = copy_checkpoint(sliced)
    path = directory / "expert_sidecar" / "layer_01.bin"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 8 * bad] ^= 4
    path.write_bytes(raw)
    engine = open_engine(LEAST, directory=directory)
    for _ in range(2):
        for prompt, answer, experts in zip(prompts, answers, needed, strict=True):
            if bad not in experts:
                assert tokens_of(engine, prompt=prompt, max_tokens=1) == answer
                continue
            events = engine.generate(GenerationRequest(prompt=prompt, max_tokens=1))
            with pytest.raises(SidecarCorruptionError) as caught:
                assert [event.token for event in events] == [], "no token before the error"
            assert (caught.value.layer, caught.value.expert) == (1, bad)
            assert caught.value.path == str(path)
            engine.store.check()
            assert all(not layer.pool.pinned for layer in engine.store.layers.values())


def test_figures_say_what_was_read(open_engine) -> None:
    engine = open_engine(LEAST)
    *_, last = engine.generate(GenerationRequest(prompt=PROMPT, max_tokens=4))
    figures = last.figures
    totals = engine.store.totals()
    assert figures.expert_misses == totals.misses > 0
    assert figures.bytes_read == totals.bytes_read
    assert figures.expert_hits + figures.expert_misses >= 4 * LEAST
    *_, again = engine.generate(GenerationRequest(prompt=PROMPT, max_tokens=4))
    assert again.figures.expert_misses == engine.store.totals().misses - totals.misses


def test_a_whole_bank_is_read_before_the_first_answer(open_engine) -> None:
    engine = open_engine()
    assert engine.store.host_free
    *_, last = engine.generate(GenerationRequest(prompt=PROMPT, max_tokens=4))
    assert (last.figures.expert_misses, last.figures.bytes_read, last.figures.hit_rate) == (0, 0, 1.0)


def test_text_is_encoded_and_bad_unicode_refused(open_engine, tokenizer) -> None:
    engine = open_engine()
    assert list(engine.encode("def f(x): ß")) == tokenizer.encode("def f(x): ß")
    with pytest.raises(TokenizerError, match="character 1 is half of a surrogate pair"):
        engine.encode("a\udcff")
    with pytest.raises(TokenizerError):
        engine.render_chat([{"role": "user", "content": "\udcff"}])


def test_a_chat_is_rendered_through_the_checkpoints_template(open_engine, tokenizer) -> None:
    messages = [{"role": "user", "content": "hello"}]
    rendered = open_engine().render_chat(messages)
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert list(rendered) == list(expected)


def test_messages_that_the_template_refuses_are_a_tokenizer_error(open_engine) -> None:
    engine = open_engine()
    engine.tokenizer._tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(TokenizerError, match="no such role"):
        engine.render_chat([{"role": "user", "content": "hello"}])


def test_without_a_chat_template_chat_is_refused(open_engine, copy_checkpoint, sliced) -> None:
    directory = copy_checkpoint(sliced)
    (directory / "chat_template.jinja").unlink()
    engine = open_engine(directory=directory)
    if engine.tokenizer.has_chat_template:
        pytest.skip("this tokenizer brings a template of its own")
    with pytest.raises(TokenizerError, match="no chat template"):
        engine.render_chat([{"role": "user", "content": "hello"}])


def test_two_answers_at_once_are_refused_and_closing_the_first_frees_the_engine(
    open_engine, expected
) -> None:
    engine = open_engine()
    first = engine.generate(GenerationRequest(prompt=PROMPT, max_tokens=12))
    next(first)
    with pytest.raises(EngineBusyError, match="another request"):
        next(engine.generate(GenerationRequest(prompt=PROMPT, max_tokens=12)))
    first.close()
    assert tokens_of(engine) == expected
