import asyncio
from typing import Any

import pytest

from mach.errors import CheckpointNotFoundError
from mach_decode.engine import Engine, EngineConfig
from mach_decode.request import GenerationRequest
from mach_server.errors import UnavailableError
from mach_server.generation_thread import GenerationThread, Job
from mach_server.token_channel import TokenChannel


def test_a_load_that_fails_is_told_to_whoever_started_it() -> None:
    thread = GenerationThread(lambda: Engine.load(EngineConfig(checkpoint="no-such-checkpoint")))
    with pytest.raises(CheckpointNotFoundError):
        thread.start()


def test_jobs_run_in_order_and_a_closed_thread_takes_none(endless_engine: type[Engine]) -> None:
    async def main() -> None:
        thread = GenerationThread(lambda: endless_engine.load(EngineConfig(checkpoint="mach-pico")))
        await asyncio.to_thread(thread.start)
        loop = asyncio.get_running_loop()
        finished: list[int] = []

        async def run(number: int) -> None:
            channel = TokenChannel(loop, 100)
            thread.submit(Job(request=GenerationRequest(prompt=(1,), max_tokens=3), channel=channel))
            items: list[Any] = []
            while not items or items[-1].finish_reason is None:
                items.extend(await asyncio.wait_for(channel.take(), 60))
            finished.append(number)

        await asyncio.gather(*(run(number) for number in range(5)))
        assert finished == [0, 1, 2, 3, 4]
        assert (thread.counts.completed, thread.counts.completion_tokens) == (5, 15)
        assert await asyncio.to_thread(thread.close, 60)
        with pytest.raises(UnavailableError):
            thread.submit(Job(request=GenerationRequest(prompt=(1,)), channel=TokenChannel(loop, 1)))

    asyncio.run(main())
