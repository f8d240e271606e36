"""Owns the one thread that touches MLX: it loads the engine, answers job after job with it, and frees it.

Other threads hand in jobs and read the snapshot; they never call the engine's model or store.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from mach.errors import MachError
from mach_decode.engine import Engine
from mach_decode.errors import GenerationCancelledError
from mach_decode.memory_watch import MemoryState, unwatched
from mach_decode.request import GenerationFigures, GenerationRequest, StepEvent
from mach_server.errors import UnavailableError
from mach_server.generation_counts import GenerationCounts, RunningAnswer
from mach_server.token_channel import Failure, TokenChannel
from mach_store.expert_map import LayerExperts

log = logging.getLogger("mach.server")

SNAPSHOT_SECONDS = 1.0
"""How old the store's figures may become during a long generation."""


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """A request on its way through the queue.

    Attributes:
        id: the request's, for the log.
        submitted: `time.perf_counter()` of its submission.
        generated: tokens so far; this and what follows is written by the generation thread alone.
        first_token: `time.perf_counter()` of the first token.
        figures: of an answer that reached its end.
    """

    request: GenerationRequest
    channel: TokenChannel
    id: str = "-"
    submitted: float = field(default_factory=time.perf_counter)
    generated: int = 0
    first_token: float | None = None
    figures: GenerationFigures | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSnapshot:
    """The store's and MLX's figures at one moment between two steps.

    Attributes:
        store: `store.stats()`.
        memory: MLX's active, cached and peak bytes.
        experts: `store.expert_map()`.
        forecast: `forecast.as_dict()`: what banks of other sizes would do.
        taken: `time.monotonic()`.
    """

    store: dict[str, Any]
    memory: dict[str, int]
    experts: dict[int, LayerExperts]
    forecast: dict[str, Any]
    taken: float


class GenerationThread:
    """Runs jobs in the order of their submission, one at a time.

    Attributes:
        counts: what has been answered so far; written by this thread alone (`withdrawn`: under the lock).
        running: the answer being made, or None; replaced, never changed in place, by this thread alone.
        snapshot: the engine's latest figures.
        memory_state: what the watch over memory has seen and done, now.
    """

    snapshot: EngineSnapshot

    def __init__(self, load: Callable[[], Engine]) -> None:
        """Args: load: makes the engine; called in the thread, because MLX's streams belong to threads."""
        self.counts = GenerationCounts()
        self.running: RunningAnswer | None = None
        self.memory_state: Callable[[], MemoryState] = lambda: unwatched("the engine is not there")
        self._load = load
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._loaded: Future[None] = Future()
        # A daemon, so that Ctrl-C during a long load ends the process.
        self._thread = threading.Thread(target=self._run, name="mach-generation", daemon=True)

    def begin(self) -> Future[None]:
        """Start to load; done when jobs are answered. It fails with whatever `load` raised."""
        # So that nobody who waits can cancel it: the load itself cannot be stopped.
        self._loaded.set_running_or_notify_cancel()
        self._thread.start()
        return self._loaded

    def start(self) -> None:
        """Load, and return when that is done.

        Raises:
            MachError: whatever `load` refused.
        """
        self.begin().result()

    @property
    def alive(self) -> bool:
        """Whether jobs are still being answered."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Jobs in the queue, without the running one."""
        return len(self._queue)

    def submit(self, job: Job) -> None:
        """Queue `job`; from any thread.

        Raises:
            UnavailableError: the thread has ended.
        """
        with self._changed:
            if self._closing or not self.alive:
                raise _ended()
            self._queue.append(job)
            self._changed.notify()

    def withdraw(self, job: Job) -> None:
        """Nobody wants `job` any more: it leaves the queue, or stops at its next step; from any thread."""
        job.channel.cancel()
        with self._changed:
            if job in self._queue:
                self._queue.remove(job)
                self.counts.withdrawn += 1

    def close(self, seconds: float) -> bool:
        """Cancel what runs, free the engine and end the thread; whether it ended within `seconds`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            engine = self._load()
            self._take_snapshot(engine)
            self.memory_state = engine.watch_memory(self._wake)
        except BaseException as error:
            _end_streams()
            self._loaded.set_exception(error)
            return
        self._loaded.set_result(None)
        try:
            while (job := self._next_job(engine)) is not None:
                self._answer(engine, job)
        except BaseException:
            log.critical("the generation thread has ended: restart the server", exc_info=True)
        finally:
            self._refuse_the_rest()
            state = self.memory_state()
            self.memory_state = lambda: state
            engine.close()
            del engine
            _end_streams()

    def _next_job(self, engine: Engine) -> Job | None:
        """The next job, or None at the end; while there is none, the bank follows the memory that is left."""
        while True:
            with self._changed:
                while not (self._queue or self._closing or engine.memory_asks):
                    self._changed.wait()
                if self._closing:
                    return None
                if self._queue:
                    return self._queue.popleft()
            engine.heed_memory()
            self._take_snapshot(engine)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _answer(self, engine: Engine, job: Job) -> None:
        """Run one job to its end, whatever happens in it.

        Raises:
            BaseException: the thread must end; the job's client has been told.
        """
        try:
            self._generate(engine, job)
        except BaseException:
            job.channel.put(Failure(_ended()))
            raise
        finally:
            self.running = None

    def _generate(self, engine: Engine, job: Job) -> None:
        channel, began, prompt_tokens = job.channel, time.perf_counter(), len(job.request.prompt)
        self.running = RunningAnswer(prompt_tokens=prompt_tokens, prefilled=0, completion_tokens=0)
        last = began
        try:
            for event in engine.generate(job.request, lambda: channel.cancelled or self._closing):
                last = self._count(job, event, last)
                if event.figures is not None:
                    # Before the client hears of it: its next request may be one for these figures.
                    self.running, job.figures = None, event.figures
                    self.counts.completed_one(event.figures, queue_seconds=began - job.submitted)
                    self._take_snapshot(engine)
                    channel.put(event)
                    continue
                self.running = RunningAnswer(
                    prompt_tokens=prompt_tokens, prefilled=event.prefilled, completion_tokens=job.generated
                )
                if time.monotonic() - self.snapshot.taken > SNAPSHOT_SECONDS:
                    self._take_snapshot(engine)
                channel.put(event)
        except GenerationCancelledError:
            # Whoever sees the count sees that nothing runs.
            self.running = None
            self.counts.cancelled += 1
            self._take_snapshot(engine)
        except Exception as error:
            self.running = None
            self.counts.failed += 1
            self._take_snapshot(engine)
            if isinstance(error, MachError):
                log.error("request %s: the generation failed: %s", job.id, error)
            else:
                log.exception("request %s: the generation failed", job.id)
            channel.put(Failure(error))

    def _count(self, job: Job, event: StepEvent, last: float) -> float:
        """Count a step's tokens and times; returns when the latest token came. Args: last: the one before."""
        counts, running = self.counts, self.running
        assert running is not None
        counts.prefilled_tokens += max(0, event.prefilled - running.prefilled)
        if event.token is None:
            return last
        now = time.perf_counter()
        if job.first_token is None:
            job.first_token = now
            counts.first_token_latency.observe(now - job.submitted)
        else:
            counts.inter_token_latency.observe(now - last)
        job.generated += 1
        counts.generated_tokens += 1
        return now

    def _take_snapshot(self, engine: Engine) -> None:
        self.snapshot = EngineSnapshot(
            store=engine.store.stats(),
            memory={
                "mlx_active_bytes": mx.get_active_memory(),
                "mlx_cache_bytes": mx.get_cache_memory(),
                "mlx_peak_bytes": mx.get_peak_memory(),
            },
            experts=engine.store.expert_map(),
            forecast=engine.forecast.as_dict(),
            taken=time.monotonic(),
        )

    def _refuse_the_rest(self) -> None:
        with self._changed:
            self._closing = True
            for job in self._queue:
                job.channel.put(Failure(_ended()))
            self._queue.clear()


def _end_streams() -> None:
    """Free this thread's MLX objects while it still runs.

    MLX would do it when the system ends the thread, which is after Python's join has returned: a process that
    exits just then is aborted ("terminate called without an active exception", 8 of 12 times on Linux).
    """
    gc.collect()
    mx.clear_streams()


def _ended() -> UnavailableError:
    return UnavailableError("the generation thread has ended; restart the server", code="engine_dead")
