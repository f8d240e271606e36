"""Owns the routes, and the form of errors that no endpoint owns (404, 405, 503 while draining)."""

from __future__ import annotations

import time

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mach_server.answer_endpoint import AnswerEndpoint, error_response
from mach_server.count_endpoint import CountEndpoint
from mach_server.endpoints import read_chat, read_completion, read_messages, read_response
from mach_server.errors import BadRequestError, GenerationError
from mach_server.inference_service import InferenceService
from mach_server.reports import cache_stats, capabilities, stats


def create_app(service: InferenceService) -> Starlette:
    """The ASGI application over a started service; `app.state.gate` counts the open requests."""
    created = int(time.time())
    facts = service.facts

    async def models(request: Request) -> Response:
        model = {
            "id": facts.model,
            "object": "model",
            "created": created,
            "owned_by": "mach",
            "max_model_len": facts.context_length,
        }
        return _json({"object": "list", "data": [model]})

    async def stats_report(request: Request) -> Response:
        return _json(stats(service))

    async def cache_report(request: Request) -> Response:
        return _json(cache_stats(service))

    async def capabilities_report(request: Request) -> Response:
        return _json(capabilities(facts))

    gate = RequestGate(service)
    app = Starlette(
        routes=[
            Route("/v1/models", models, methods=["GET"]),
            Route("/v1/chat/completions", AnswerEndpoint(service, read_chat), methods=["POST"]),
            Route("/v1/completions", AnswerEndpoint(service, read_completion), methods=["POST"]),
            Route("/v1/responses", AnswerEndpoint(service, read_response), methods=["POST"]),
            Route("/v1/messages", AnswerEndpoint(service, read_messages), methods=["POST"]),
            Route("/v1/messages/count_tokens", CountEndpoint(service), methods=["POST"]),
            Route("/v1/stats", stats_report, methods=["GET"]),
            Route("/v1/cache/stats", cache_report, methods=["GET"]),
            Route("/v1/capabilities", capabilities_report, methods=["GET"]),
        ],
        middleware=[Middleware(gate.around)],
        exception_handlers={HTTPException: _http_error, Exception: _bug},
    )
    app.state.gate = gate
    return app


class RequestGate:
    """Counts open requests, and refuses new ones while the server drains.

    Attributes:
        open: requests whose handlers have not returned.
    """

    def __init__(self, service: InferenceService) -> None:
        """Args: service: says whether the server drains."""
        self.open = 0
        self._service = service

    def around(self, app: ASGIApp) -> ASGIApp:
        """`app` behind this gate."""

        async def gated(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            self.open += 1
            try:
                if self._service.draining:
                    refusal = error_response(self._service.shutting_down(), scope["path"])
                    await refusal(scope, receive, send)
                else:
                    await app(scope, receive, send)
            finally:
                self.open -= 1

        return gated


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    if error.status_code == 405:
        message, code = f"{request.method} is not allowed on {path}", "method_not_allowed"
    else:
        message, code = f"there is nothing at {path}", "not_found"
    told = BadRequestError(message, code=code)
    told.status = error.status_code
    answer = error_response(told, path)
    answer.headers.update(error.headers or {})
    return answer


async def _bug(request: Request, bug: Exception) -> Response:
    error = GenerationError("the server failed; its log says why", code="internal_error")
    return error_response(error, request.url.path)


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
