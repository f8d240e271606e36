import logging
import threading

import pytest

from mach_decode.memory_watch import MemoryWatch, unwatched
from mach_decode.request import GenerationRequest
from mach_store import page_return
from mach_store.errors import BankResizeError
from mach_store.memory_reading import MemoryReading
from mach_store.pressure_rule import PressureRule

shrinks = pytest.mark.skipif(page_return.refusal() is not None, reason=str(page_return.refusal()))
PROMPT = tuple(range(20, 30))


def watch_over(bank, rooms: list[int], wake=lambda: None, interval: float = 60.0) -> MemoryWatch:
    """A watch that reads `rooms` one after the other."""
    rest = iter(rooms)
    rule = PressureRule(declared=bank.declared_bytes, least=bank.least_bytes, reserve=1000)
    return MemoryWatch(
        bank, wake, read=lambda: MemoryReading(next(rest), "made up"), rule=rule, interval=interval
    )


@shrinks
def test_a_wish_is_asked_for_once_and_carried_out_when_it_is_heeded(open_engine, caplog) -> None:
    bank = open_engine(slots=20).store
    woken: list[int] = []
    watch = watch_over(bank, [0, 0, 10**9], wake=lambda: woken.append(1))
    before = bank.nbytes
    watch.look(0.0)
    watch.look(0.5)
    assert (watch.asks, len(woken), bank.nbytes) == (True, 1, before), (
        "nothing changes behind the engine's back"
    )
    with caplog.at_level(logging.INFO, "mach.memory"):
        watch.heed()
    assert bank.nbytes < before
    assert not watch.asks
    said = watch.state.as_dict()
    assert (said["watching"], said["bank_shrinks"], said["room_bytes"]) == (True, 1, 0)
    assert caplog.messages == [f"memory: {said['last_change']}"]
    assert f"the expert bank shrinks from {before / 1e9:.3f} to {bank.nbytes / 1e9:.3f} GB" in caplog.text
    bank.check()


@shrinks
def test_it_grows_back_to_what_was_declared(open_engine) -> None:
    bank = open_engine(slots=20).store
    watch = watch_over(bank, [0] * 40 + [10**9] * 400)
    for turn in range(40):
        watch.look(turn * 0.5)
        watch.heed()
    assert bank.budget_bytes == bank.least_bytes
    for turn in range(400):
        watch.look(20 + turn * 0.5)
        watch.heed()
        bank.check()
    assert bank.budget_bytes == bank.declared_bytes
    assert watch.state.grows > 1


@shrinks
def test_an_answer_heeds_the_watch_between_its_steps_and_stays_the_same(open_engine, monkeypatch) -> None:
    request = GenerationRequest(prompt=PROMPT, max_tokens=12)
    expected = [event.token for event in open_engine(slots=24).generate(request)]
    engine = open_engine(slots=24)
    engine._watch = watch_over(engine.store, [0] * 99)
    sizes, tokens = [], []
    for turn, event in enumerate(engine.generate(request)):
        engine._watch.look(turn * 1.0)
        sizes.append(engine.store.nbytes)
        tokens.append(event.token)
    assert tokens == expected
    assert sizes[0] > sizes[-1]


@shrinks
def test_the_thread_looks_by_itself_and_ends(open_engine) -> None:
    engine, woken = open_engine(slots=20), threading.Event()
    watch = watch_over(engine.store, [0] * 1000, wake=woken.set, interval=0.01)
    watch.start()
    assert woken.wait(30)
    watch.close()
    assert not watch._thread.is_alive()


def test_a_bank_that_cannot_shrink_says_so_once(open_engine, caplog) -> None:
    bank = open_engine(slots=20).store
    bank.resize_refusal = "the bank is in buffers of the GPU's driver"
    watch = watch_over(bank, [0] * 9)
    for turn in range(9):
        watch.look(turn * 10.0)
        watch.heed()
    assert not watch.asks
    assert caplog.text.count("keeps its size: the bank is in buffers of the GPU's driver") == 1
    assert watch.state.as_dict()["why_not"] == "the bank is in buffers of the GPU's driver"
    assert not watch.state.watching


@shrinks
def test_a_system_that_refuses_ends_the_asking(open_engine, monkeypatch, caplog) -> None:
    bank = open_engine(slots=20).store
    watch = watch_over(bank, [0] * 9)

    def refuse(*_: object) -> None:
        raise BankResizeError("the system does not take memory back: madvise: Invalid argument")

    monkeypatch.setattr("mach_store.expert_arrays.release_rows", refuse)
    before = bank.nbytes
    for turn in range(9):
        watch.look(turn * 10.0)
        watch.heed()
    assert bank.nbytes == before
    assert not watch.state.watching
    assert "Invalid argument" in str(watch.state.why_not)
    assert "Invalid argument" in caplog.text
    bank.check()


def test_an_engine_says_why_nobody_watches(open_engine, stacked, monkeypatch) -> None:
    resident = open_engine(directory=stacked, expert_residency="stacked")
    assert resident.watch_memory()() == unwatched("there is no bank to shrink")
    monkeypatch.setenv("LME_MEMORY_PRESSURE", "0")
    off = open_engine(slots=20)
    assert off.watch_memory()() == unwatched("LME_MEMORY_PRESSURE=0")
    off.heed_memory()
    assert not off.memory_asks


def test_closing_an_engine_ends_its_watch(open_engine) -> None:
    engine = open_engine(slots=20)
    state = engine.watch_memory()
    assert engine._watch is not None
    thread = engine._watch._thread
    assert thread.is_alive()
    engine.close()
    assert not thread.is_alive()
    assert state().reserve_bytes > 0
