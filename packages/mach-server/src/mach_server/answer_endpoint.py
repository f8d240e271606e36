"""Owns a request's life: body → prompt → queue → answer, whole or streamed, until its client leaves.

Everything runs in one task that is cancelled when the client closes its connection or stops reading; leaving
the task withdraws the job, so the engine is free by its next step. What bodies and answers look like is the
business of the endpoint's reader and writer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mach_decode.request import GenerationRequest, StepEvent
from mach_server.admission import admitted_body, count_rejection, failure_of
from mach_server.answer.events import AnswerParser
from mach_server.answer_reader import AnswerReader
from mach_server.answer_writer import AnswerWriter, Exchange, keep_alive
from mach_server.collected_answer import CollectedAnswer
from mach_server.errors import BadRequestError, RequestTimeoutError, api_error_of
from mach_server.event_stream import EventStream
from mach_server.expert_io import ExpertIO
from mach_server.inference_service import InferenceService
from mach_server.refusal import error_response
from mach_server.request_body import disconnected
from mach_server.request_record import RequestRecord, record_of
from mach_server.token_channel import Failure, TokenChannel

ReadBody = Callable[[bytes, InferenceService], Exchange]
"""A body's bytes → what they ask for; raises ApiError or SamplingError for what cannot be honoured."""


class AnswerEndpoint:
    """One of the endpoints that answer with generated text, as an ASGI application."""

    def __init__(self, service: InferenceService, read: ReadBody) -> None:
        """Args: service: the loaded model; read: understands this endpoint's bodies."""
        self._service, self._read = service, read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        service, request = self._service, Request(scope, receive)
        stream, record = EventStream(send), record_of(scope)
        exchange: Exchange | None = None
        try:
            # The place is given back as soon as the engine has finished, however slowly the client reads.
            with ExitStack() as place:
                exchange = self._read(await admitted_body(request, service, place), service)
                channel = TokenChannel(asyncio.get_running_loop(), service.limits.client_buffer_events)
                answer = self._answer(exchange, channel, stream, place, record)
                body = await self._in_time(_while_wanted(answer, channel, receive))
        except ClientDisconnect:
            record.finish = "client_left"
            return
        except Exception as error:
            told = failure_of(error, record, exchange.request.prompt_field if exchange else "messages")
            if stream.started and exchange is not None:
                await stream.close_with(exchange.writer.failed(told))
                return
            count_rejection(told, service)
            await error_response(told, request.url.path)(scope, receive, send)
        else:
            if body is not None:
                await Response(body, media_type="application/json")(scope, receive, send)

    async def _in_time(self, answer: Coroutine[Any, Any, bytes | None]) -> bytes | None:
        """The result of `answer`.

        Raises:
            RequestTimeoutError: it took longer than an answer may; it was cancelled.
        """
        seconds = self._service.limits.request_seconds
        try:
            async with asyncio.timeout(seconds) as clock:
                return await answer
        except TimeoutError as error:
            if not clock.expired():
                raise
            raise RequestTimeoutError(
                f"the answer was not whole after {seconds:g} s, which is what this server allows",
                code="request_timeout",
            ) from error

    async def _answer(
        self,
        exchange: Exchange,
        channel: TokenChannel,
        stream: EventStream,
        place: ExitStack,
        record: RequestRecord,
    ) -> bytes | None:
        """Generate; returns the body of a whole answer, or None after a stream."""
        service, writer = self._service, exchange.writer
        preparing = asyncio.ensure_future(self._prepared(exchange))
        silence = service.limits.keep_alive_seconds
        try:
            while exchange.stream and not (await asyncio.wait((preparing,), timeout=silence))[0]:
                await stream.send(keep_alive("preparing"))
            generation, parser = await preparing
        finally:
            preparing.cancel()
            await asyncio.gather(preparing, return_exceptions=True)
        tokens = record.prompt_tokens = len(generation.prompt)
        reader = AnswerReader(parser, tokens, one_call=not exchange.request.tools.parallel)
        with service.generation(generation, channel, record.id) as job:
            try:
                if not exchange.stream:
                    return await _whole(reader, writer, channel)
                await _Streaming(reader, writer, channel, stream, place, tokens, silence).run()
                return None
            finally:
                record.completion_tokens, record.first_token = job.generated, job.first_token
                if reader.outcome is not None:
                    record.finish = reader.outcome.reason
                if job.figures is not None:
                    record.expert_io = ExpertIO.of(job.figures)

    async def _prepared(self, exchange: Exchange) -> tuple[GenerationRequest, AnswerParser]:
        """What the engine is asked for, and what reads its answer."""
        prepare, request = self._service.preparation, exchange.request
        prompt = await prepare.prompt_of(request)
        most = self._service.limits.prompt_tokens
        if most is not None and len(prompt) > most:
            raise BadRequestError(
                f"the prompt has {len(prompt)} tokens, but this server takes at most {most}",
                param=request.prompt_field,
                code="prompt_too_long",
            )
        prepare.check_room(prompt, request.max_tokens)
        if exchange.echo is not None:
            given = request.prompt
            exchange.echo(given if isinstance(given, str) else await prepare.text_of(prompt))
        opening = await prepare.opening_of(request, prompt)
        generation = GenerationRequest(
            prompt=prompt,
            max_tokens=request.max_tokens,
            stop=request.stop,
            sampling=request.sampling,
            logprobs=request.logprobs,
            prompt_logprobs=request.prompt_logprobs,
            constraint=await prepare.constraint_of(request, opening),
        )
        return generation, prepare.parser_of(request, opening, whole=not exchange.stream)


async def _while_wanted(
    answer: Coroutine[Any, Any, bytes | None], channel: TokenChannel, receive: Receive
) -> bytes | None:
    """The result of `answer`, which is cancelled when its client leaves or does not read.

    Raises:
        ClientDisconnect: it was cancelled.
    """
    wanted = asyncio.create_task(answer)
    left = asyncio.create_task(disconnected(receive))
    stuck = asyncio.create_task(channel.overflowed.wait())
    tasks: tuple[asyncio.Task[Any], ...] = (wanted, left, stuck)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not wanted.done():
            raise ClientDisconnect
        return wanted.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _whole(reader: AnswerReader, writer: AnswerWriter, channel: TokenChannel) -> bytes:
    answer = CollectedAnswer()
    while reader.outcome is None:
        for item in await channel.take():
            part = reader.feed(_step_of(item))
            answer.add(part.events)
            answer.logprobs += part.logprobs
            answer.prompt_logprobs += part.prompt_logprobs
            if reader.outcome is not None:
                break
    return writer.whole(answer, reader.outcome)


class _Streaming:
    """Sends an answer while it is made; what came together goes out in one write."""

    def __init__(
        self,
        reader: AnswerReader,
        writer: AnswerWriter,
        channel: TokenChannel,
        stream: EventStream,
        place: ExitStack,
        prompt_tokens: int,
        silence: float,
    ) -> None:
        self._reader, self._writer, self._channel = reader, writer, channel
        self._stream, self._place = stream, place
        self._prompt_tokens, self._silence = prompt_tokens, silence
        self._begun = False
        self._sent = asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Until the answer's end."""
        while self._reader.outcome is None:
            items = await self._items()
            events, failure = self._events_of(items)
            if not events and failure is None and self._quiet:
                events = self._progress()
            if events:
                await self._send(events)
            if failure is not None:
                raise api_error_of(failure) from failure
        await self._stream.end()

    async def _items(self) -> list[StepEvent | Failure]:
        """What has arrived; nothing when nothing was to be sent for too long."""
        try:
            async with asyncio.timeout_at(self._sent + self._silence):
                return await self._channel.take()
        except TimeoutError:
            return []

    def _events_of(self, items: list[StepEvent | Failure]) -> tuple[bytes, Exception | None]:
        """What to send for `items`, and the failure among them."""
        events = b""
        for item in items:
            if isinstance(item, Failure):
                return events, item.error
            # The status line waits for the engine's first sign of life: what it refuses gets a status of its
            # own. (A keep-alive comment may have gone out before.)
            if not self._begun:
                self._begun = True
                events += self._writer.begin(self._prompt_tokens)
            events += self._writer.part(self._reader.feed(item))
            if self._reader.outcome is not None:
                events += self._writer.end(self._reader.outcome)
                self._place.close()
                break
        return events, None

    @property
    def _quiet(self) -> bool:
        return asyncio.get_running_loop().time() >= self._sent + self._silence

    def _progress(self) -> bytes:
        done, all_of_it = self._reader.prefilled, self._prompt_tokens
        if not self._begun:
            return keep_alive("queued")
        return keep_alive("decode" if done == all_of_it else f"prefill {done}/{all_of_it} tokens")

    async def _send(self, events: bytes) -> None:
        await self._stream.send(events)
        self._sent = asyncio.get_running_loop().time()


def _step_of(item: StepEvent | Failure) -> StepEvent:
    if isinstance(item, Failure):
        raise api_error_of(item.error) from item.error
    return item
