import pytest

from mach_decode.errors import GenerationCancelledError
from mach_decode.request import GenerationRequest
from mach_store.errors import RoutesUnseenError, SidecarCorruptionError

PROMPT = tuple(range(100, 160))
LAYERS, TOP_K = 3, 2


class Watcher:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list = []
        self.passes: list = []

    def answer_began(self, prompt_tokens) -> None:
        self.told.append(("began", prompt_tokens))

    def routed(self, passes, *, prefill) -> None:
        assert passes
        self.told.append(("prefill" if prefill else "decode", [(p.layer, len(p.ids)) for p in passes]))
        self.passes += passes

    def answer_ended(self, *, finished) -> None:
        self.told.append(("ended", finished))


def answer(engine, tokens=4, prompt=PROMPT, cancelled=lambda: False) -> list[int]:
    request = GenerationRequest(prompt=prompt, max_tokens=tokens)
    return [event.token for event in engine.generate(request, cancelled) if event.token is not None]


def each_layer(tokens) -> list:
    return [(layer, tokens) for layer in range(LAYERS)]


def test_every_step_tells_its_routes_between_an_answers_beginning_and_end(open_engine) -> None:
    engine, watcher = open_engine(12, prefill_chunk=40), Watcher()
    engine.route_observers.add(watcher)
    answer(engine, tokens=3)
    assert watcher.told == [
        ("began", 60),
        ("prefill", each_layer(40)),
        ("prefill", each_layer(19)),
        *[("decode", each_layer(1))] * 3,
        ("ended", True),
    ]
    assert all(p.ids.shape[1] == TOP_K for p in watcher.passes)


@pytest.mark.parametrize("slots", [6, 12, None])
def test_observing_changes_no_token_and_everybody_sees_the_same(open_engine, slots) -> None:
    engine, first, second = open_engine(slots), Watcher(), Watcher()
    expected = answer(engine, tokens=8)
    engine.route_observers.add(first)
    engine.route_observers.add(second)
    assert answer(engine, tokens=8) == expected
    assert first.told == second.told
    for one, other in zip(first.passes, second.passes, strict=True):
        assert (one.ids == other.ids).all()


def test_stacked_experts_show_the_routes_that_streaming_shows_and_stay_host_free(
    open_engine, stacked
) -> None:
    seen = []
    for engine in (open_engine(12), open_engine(directory=stacked, expert_residency="stacked")):
        watcher = Watcher()
        engine.route_observers.add(watcher)
        tokens = answer(engine, tokens=8)
        seen.append((tokens, [(p.layer, p.ids.tolist()) for p in watcher.passes]))
    assert engine.store.host_free
    assert seen[0] == seen[1]


def test_who_has_seen_enough_sees_no_more_and_the_bank_is_host_free_again(open_engine) -> None:
    engine, watcher = open_engine(), Watcher()
    assert engine.store.host_free
    engine.route_observers.add(watcher)
    assert not engine.store.host_free
    answer(engine)
    engine.route_observers.remove(watcher)
    assert engine.store.host_free
    told = len(watcher.told)
    answer(engine)
    assert len(watcher.told) == told
    assert engine.store.drain_routes() == []


def test_an_observer_may_leave_while_it_is_told(open_engine) -> None:
    engine, leaver, stayer = open_engine(12), Watcher(), Watcher()
    leaver.routed = lambda passes, prefill: engine.route_observers.remove(leaver)  # type: ignore[method-assign]
    engine.route_observers.add(leaver)
    engine.route_observers.add(stayer)
    answer(engine)
    assert leaver.told == [("began", 60)]
    assert stayer.told[-1] == ("ended", True)


def test_an_answer_that_is_cancelled_or_fails_ends_unfinished(open_engine, sliced, copy_checkpoint) -> None:
    directory = copy_checkpoint(sliced)
    engine, watcher = open_engine(6, directory=directory, prefill_chunk=8), Watcher()
    engine.route_observers.add(watcher)
    calls = iter([False] * 4 + [True] * 100)
    with pytest.raises(GenerationCancelledError):
        answer(engine, cancelled=lambda: next(calls))
    assert watcher.told[0] == ("began", 60)
    assert watcher.told[-1] == ("ended", False)
    assert engine.store.drain_routes() == []
    for path in (directory / "expert_sidecar").glob("layer_*.bin"):
        path.write_bytes(bytes(path.stat().st_size))
    watcher.told.clear()
    with pytest.raises(SidecarCorruptionError):
        answer(engine)
    assert watcher.told[0] == ("began", 60)
    assert watcher.told[-1] == ("ended", False)


def test_a_prompt_of_one_token_has_no_prefill_and_one_of_two_has(open_engine) -> None:
    engine, watcher = open_engine(12), Watcher()
    engine.route_observers.add(watcher)
    answer(engine, tokens=1, prompt=(7,))
    answer(engine, tokens=1, prompt=(7, 8))
    assert watcher.told == [
        ("began", 1), ("decode", each_layer(1)), ("ended", True),
        # Nobody needs what the last layer's experts make of a prompt: within a graph they are not even asked.
        ("began", 2), ("prefill", each_layer(1)[:-1]), ("decode", each_layer(1)), ("ended", True),
    ]  # fmt: skip


def test_mlx_lms_own_experts_cannot_be_observed(open_engine, stacked) -> None:
    engine = open_engine(directory=stacked, expert_residency="unswapped")
    with pytest.raises(RoutesUnseenError, match="use --streaming or --no-streaming"):
        engine.route_observers.add(Watcher())
    assert answer(engine, tokens=1)
