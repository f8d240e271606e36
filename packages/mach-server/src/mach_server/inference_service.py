"""Owns what all endpoints share: the loaded model, admission, and the way to a job."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from mach_decode.engine import Engine, EngineConfig
from mach_decode.request import GenerationRequest
from mach_server.errors import QueueFullError, UnavailableError
from mach_server.generation_thread import GenerationThread, Job
from mach_server.limits import Limits
from mach_server.preparation import Preparation
from mach_server.serving_facts import ServingFacts, facts_of
from mach_server.token_channel import TokenChannel
from mach_server.trace_recording import TraceRecording

ServiceState = Literal["loading", "ok", "draining", "engine_dead"]


class InferenceService:
    """One loaded model, ready to answer.

    Attributes:
        facts: what was loaded.
        preparation: what is done for requests before the engine sees them.
        limits: the bounds it works under.
        recording: of routes, or None.
        thread: the generation thread.
        admitted: requests whose answers are not finished, waiting or running.
        rejected: requests that were answered with an error before they reached the queue.
        loaded: whether `facts` and `preparation` are there.
        draining: whether new requests are refused, because the server is ending.
    """

    facts: ServingFacts
    preparation: Preparation

    def __init__(
        self,
        config: EngineConfig,
        limits: Limits,
        *,
        target_only: bool = False,
        recording: TraceRecording | None = None,
        engine_class: type[Engine] = Engine,
    ) -> None:
        """Describe it; `start` loads it.

        Args:
            config: what to load.
            limits: the bounds to work under.
            target_only: whether `--target-only` was given.
            recording: of the routes of every answer, if they are recorded.
            engine_class: what loads `config`; tests give others.
        """
        self.limits = limits
        self.admitted = self.rejected = 0
        self.loaded = self.draining = False
        self._config, self._target_only, self._engine_class = config, target_only, engine_class
        self.recording = recording
        self._open_jobs: set[Job] = set()
        self.thread = GenerationThread(self._load)

    def start(self) -> None:
        """Load the model; returns when it is ready.

        Raises:
            MachError: every way in which a checkpoint, a budget or the machine can refuse.
        """
        self.thread.start()
        self.loaded = True

    async def load(self) -> None:
        """As `start`, while the event loop goes on."""
        await asyncio.wrap_future(self.thread.begin())
        self.loaded = True

    @property
    def state(self) -> ServiceState:
        """What `/health` says."""
        if not self.loaded:
            return "loading"
        if self.draining:
            return "draining"
        return "ok" if self.thread.alive else "engine_dead"

    def close(self) -> bool:
        """Free the engine; False when its thread would not end in time."""
        if self.loaded:
            self.preparation.close()
        ended = self.thread.close(self.limits.shutdown_seconds)
        if ended and self.recording is not None:
            self.recording.finish()
        return ended

    def _load(self) -> Engine:
        engine = self._engine_class.load(self._config)
        self.facts = facts_of(engine, self._config.checkpoint, target_only=self._target_only)
        self.preparation = Preparation(engine, self.limits)
        if self.recording is not None:
            try:
                self.recording.begin(engine)
            except BaseException:
                engine.close()
                raise
        return engine

    @contextmanager
    def admission(self) -> Iterator[None]:
        """A place among the requests that may be read, tokenized, queued and answered at once.

        Raises:
            QueueFullError: all places are taken.
            UnavailableError: the server is ending.
        """
        if self.draining:
            raise self.shutting_down()
        if self.admitted > self.limits.queue_length:
            raise QueueFullError(
                f"{self.limits.queue_length} requests are waiting already; try again later",
                code="queue_full",
                retry_after=self.limits.retry_after,
            )
        self.admitted += 1
        try:
            yield
        finally:
            self.admitted -= 1

    def shutting_down(self) -> UnavailableError:
        """The refusal of a server that is ending."""
        return UnavailableError(
            "the server is shutting down", code="shutting_down", retry_after=self.limits.retry_after
        )

    def loading(self) -> UnavailableError:
        """The refusal of a server that is not ready yet."""
        return UnavailableError("the model is loading", code="loading", retry_after=self.limits.retry_after)

    @contextmanager
    def generation(self, request: GenerationRequest, channel: TokenChannel, id: str) -> Iterator[Job]:
        """Run `request` while the block runs; leaving the block, however, ends it.

        Args:
            request: what to generate.
            channel: where its steps go.
            id: of the HTTP request, for the log.

        Raises:
            UnavailableError: the generation thread has ended.
        """
        job = Job(request=request, channel=channel, id=id)
        self._open_jobs.add(job)
        try:
            self.thread.submit(job)
            yield job
        finally:
            self._open_jobs.discard(job)
            self.thread.withdraw(job)

    def abort(self) -> None:
        """End every open answer with an error: the server is ending and will wait no longer."""
        for job in self._open_jobs:
            job.channel.fail(self.shutting_down())
