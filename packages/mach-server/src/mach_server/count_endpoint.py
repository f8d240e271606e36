"""Owns `POST /v1/messages/count_tokens`: a conversation's length as the chat template makes it."""

from __future__ import annotations

from contextlib import ExitStack

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mach_decode.errors import PromptTooLongError
from mach_server.admission import admitted_body, count_rejection, failure_of
from mach_server.inference_service import InferenceService
from mach_server.messages_request import parse_count_request
from mach_server.refusal import error_response
from mach_server.request_record import record_of


class CountEndpoint:
    """The endpoint as an ASGI application. It waits for the tokenizer alone, never for the engine."""

    def __init__(self, service: InferenceService) -> None:
        """Args: service: the loaded model."""
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        service, request = self._service, Request(scope, receive)
        record = record_of(scope)
        try:
            count = record.prompt_tokens = await self._count(request)
            answer = Response(msgspec.json.encode({"input_tokens": count}), media_type="application/json")
        except ClientDisconnect:
            record.finish = "client_left"
            return
        except Exception as error:
            told = failure_of(error, record)
            count_rejection(told, service)
            answer = error_response(told, request.url.path)
        await answer(scope, receive, send)

    async def _count(self, request: Request) -> int:
        service = self._service
        with ExitStack() as place:
            asked = parse_count_request(await admitted_body(request, service, place))
            try:
                prompt = asked.answer_request(service.facts.names, service.limits)
                return len(await service.preparation.prompt_of(prompt))
            except PromptTooLongError as error:
                return error.prompt_tokens
