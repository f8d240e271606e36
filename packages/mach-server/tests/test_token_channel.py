import asyncio
import threading

from mach_decode.request import StepEvent
from mach_server.token_channel import Failure, TokenChannel


def test_items_arrive_in_order_from_another_thread() -> None:
    async def main() -> list[str]:
        channel = TokenChannel(asyncio.get_running_loop(), 10_000)
        thread = threading.Thread(target=lambda: [channel.put(StepEvent(text=str(n))) for n in range(5000)])
        thread.start()
        texts: list[str] = []
        while len(texts) < 5000:
            texts.extend(item.text for item in await asyncio.wait_for(channel.take(), 30))
        thread.join()
        return texts

    assert asyncio.run(main()) == [str(n) for n in range(5000)]


def test_items_put_before_the_loop_looks_come_together() -> None:
    async def main() -> int:
        channel = TokenChannel(asyncio.get_running_loop(), 10)
        for _ in range(7):
            channel.put(StepEvent())
        return len(await channel.take())

    assert asyncio.run(main()) == 7


def test_a_full_channel_cancels_its_generation_and_drops_the_rest() -> None:
    async def main() -> None:
        channel = TokenChannel(asyncio.get_running_loop(), 3)
        for _ in range(3):
            channel.put(StepEvent())
        assert not channel.cancelled
        channel.put(StepEvent())
        channel.put(StepEvent())
        assert channel.cancelled
        await asyncio.wait_for(channel.overflowed.wait(), 30)
        assert len(await channel.take()) == 3

    asyncio.run(main())


def test_failing_a_channel_ends_it_for_its_reader_at_once() -> None:
    async def main() -> None:
        channel = TokenChannel(asyncio.get_running_loop(), 3)
        reader = asyncio.create_task(channel.take())
        await asyncio.sleep(0)
        error = RuntimeError()
        channel.fail(error)
        assert await asyncio.wait_for(reader, 30) == [Failure(error)]
        assert channel.cancelled

    asyncio.run(main())


def test_a_loop_that_has_ended_cancels_instead_of_raising() -> None:
    async def main() -> TokenChannel:
        return TokenChannel(asyncio.get_running_loop(), 3)

    channel = asyncio.run(main())
    channel.put(StepEvent())
    assert channel.cancelled
