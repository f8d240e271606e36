"""Owns a chat request's life: body → prompt → queue → answer, whole or streamed, until its client leaves.

Everything runs in one task that is cancelled when the client closes its connection or stops reading; leaving
the task withdraws the job, so the engine is free by its next step.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import ExitStack
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mach.errors import MachError
from mach_decode.request import StepEvent
from mach_server.chat_request import ChatRequest, parse_chat_request
from mach_server.chat_response import ChatAnswer
from mach_server.errors import ApiError, UnavailableError, api_error_of
from mach_server.event_stream import EventStream
from mach_server.inference_service import InferenceService
from mach_server.request_body import discard_body, disconnected, read_body
from mach_server.token_channel import Failure, TokenChannel

log = logging.getLogger("mach.server")


class ChatEndpoint:
    """`POST /v1/chat/completions` as an ASGI application."""

    def __init__(self, service: InferenceService) -> None:
        """Args: service: the loaded model."""
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        service, request = self._service, Request(scope, receive)
        stream = EventStream(send)
        try:
            # The place is given back as soon as the engine has finished, however slowly the client reads.
            with ExitStack() as place:
                try:
                    place.enter_context(service.admission())
                except ApiError:
                    await discard_body(request, service.limits)
                    raise
                chat = parse_chat_request(await read_body(request, service.limits))
                chat.check(service.facts.names, service.limits)
                channel = TokenChannel(asyncio.get_running_loop(), service.limits.client_buffer_events)
                answer = self._answer(chat, channel, stream, place)
                body = await _while_wanted(answer, channel, receive)
        except ClientDisconnect:
            return
        except Exception as error:
            if not isinstance(error, MachError):
                log.exception("a request failed")
            await self._refuse(api_error_of(error), stream, scope, receive, send)
        else:
            if body is not None:
                await Response(body, media_type="application/json")(scope, receive, send)

    async def _answer(
        self, chat: ChatRequest, channel: TokenChannel, stream: EventStream, place: ExitStack
    ) -> bytes | None:
        """Generate; returns the body of a whole answer, or None after a stream."""
        service = self._service
        prompt = await service.render_chat(chat.template_messages(), chat.chat_template_kwargs or {})
        facts = service.facts
        answer = ChatAnswer(facts.model, facts.fingerprint, include_usage=chat.include_usage)
        with service.generation(chat.generation(prompt), channel):
            if chat.stream:
                await _stream(answer, channel, stream, place)
                return None
            return await _whole(answer, channel)

    async def _refuse(
        self, error: ApiError, stream: EventStream, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if stream.started:
            await stream.fail(error)
            return
        self._service.rejected += error.status < 500 or isinstance(error, UnavailableError)
        await error_response(error)(scope, receive, send)


def error_response(error: ApiError) -> Response:
    """The answer that tells `error`."""
    return Response(
        error.body(), status_code=error.status, headers=error.headers, media_type="application/json"
    )


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


async def _whole(answer: ChatAnswer, channel: TokenChannel) -> bytes:
    pieces: list[str] = []
    while True:
        for event in await channel.take():
            step = _step_of(event)
            pieces.append(step.text)
            if step.finish_reason is not None and step.figures is not None:
                return answer.whole("".join(pieces), step.finish_reason, step.figures)


async def _stream(answer: ChatAnswer, channel: TokenChannel, stream: EventStream, place: ExitStack) -> None:
    """Send tokens as they come, those that came together in one write."""
    finished = False
    while not finished:
        events = await channel.take()
        # The status line waits for the engine's first sign of life: what it refuses gets a status of its own.
        chunks = b"" if stream.started or isinstance(events[0], Failure) else answer.role_chunk()
        failure: Exception | None = None
        for event in events:
            if isinstance(event, Failure):
                failure = event.error
                break
            if event.text:
                chunks += answer.text_chunk(event.text)
            if event.finish_reason is not None and event.figures is not None:
                chunks += answer.last_chunks(event.finish_reason, event.figures)
                finished = True
                place.close()
        if chunks:
            await stream.send(chunks)
        if failure is not None:
            raise api_error_of(failure) from failure
    await stream.end()


def _step_of(event: StepEvent | Failure) -> StepEvent:
    if isinstance(event, Failure):
        raise api_error_of(event.error) from event.error
    return event
