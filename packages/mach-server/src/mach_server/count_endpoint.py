"""Owns `POST /v1/messages/count_tokens`: a conversation's length as the chat template makes it."""

from __future__ import annotations

import logging
from contextlib import ExitStack

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mach.errors import MachError
from mach_decode.errors import PromptTooLongError
from mach_server.errors import ApiError, UnavailableError, api_error_of
from mach_server.inference_service import InferenceService
from mach_server.messages_request import parse_count_request
from mach_server.refusal import error_response
from mach_server.request_body import discard_body, read_body
from mach_server.request_record import record_of

log = logging.getLogger("mach.server")


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
            if not isinstance(error, MachError):
                log.exception("request %s failed", record.id)
            told = api_error_of(error)
            record.error = told.code or told.type
            service.rejected += told.status < 500 or isinstance(told, UnavailableError)
            answer = error_response(told, request.url.path)
        await answer(scope, receive, send)

    async def _count(self, request: Request) -> int:
        service = self._service
        with ExitStack() as place:
            try:
                place.enter_context(service.admission())
            except ApiError:
                await discard_body(request, service.limits)
                raise
            asked = parse_count_request(await read_body(request, service.limits))
            try:
                prompt = asked.answer_request(service.facts.names, service.limits)
                return len(await service.preparation.prompt_of(prompt))
            except PromptTooLongError as error:
                return error.prompt_tokens
