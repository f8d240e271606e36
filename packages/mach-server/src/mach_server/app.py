"""Owns the routes, what every request passes on its way to them, and errors that no endpoint owns."""

from __future__ import annotations

import time

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mach_server.access import Access
from mach_server.answer_endpoint import AnswerEndpoint
from mach_server.api_key import ApiKeyGuard
from mach_server.count_endpoint import CountEndpoint
from mach_server.endpoints import read_chat, read_completion, read_messages, read_response
from mach_server.errors import BadRequestError, ModelNotFoundError
from mach_server.expert_report import expert_report
from mach_server.inference_service import InferenceService
from mach_server.metrics import Metrics
from mach_server.origin_guard import OriginGuard
from mach_server.refusal import error_response, refuse
from mach_server.repeated_reports import MakeBody, RepeatedReports
from mach_server.reports import cache_stats, capabilities, health, model, stats
from mach_server.request_log import RequestLog
from mach_server.request_record import record_of
from mach_server.status_page import StatusPage
from mach_server.wire_body import check_model

HEALTH = "/health"
OPERATORS_PATHS = frozenset({HEALTH, "/metrics"})
"""What is answered while the server drains, too."""


def create_app(service: InferenceService, access: Access | None = None) -> Starlette:
    """The ASGI application over a service, which may still be loading.

    Args:
        service: the loaded model. Until it is there, everything but `/health` gets 503.
        access: who may use it; None is everybody who calls a loopback address by its name.

    `app.state.gate` counts the open requests, `app.state.repeated` knows the short way to reports, and
    `app.state.request_log` is to be flushed at the end.
    """
    created = int(time.time())
    access = access or Access()

    async def one_model(request: Request) -> Response:
        try:
            check_model(request.path_params["model"], service.facts.names)
        except ModelNotFoundError as error:
            record_of(request.scope).error = error.code
            return error_response(error, request.url.path)
        return _json(model(service.facts, created))

    async def unhealthy(request: Request) -> Response:
        body, status = health(service)
        answer = _json(body, status)
        if service.state in ("loading", "draining"):
            answer.headers["retry-after"] = str(service.limits.retry_after)
        return answer

    async def health_report(request: Request) -> Response:
        return await (healthy if service.state == "ok" else unhealthy)(request)

    async def metrics_page(request: Request) -> Response:
        body, media_type = metrics.page(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": media_type})

    reports: dict[str, MakeBody] = {
        "/v1/models": lambda: {"object": "list", "data": [model(service.facts, created)]},
        "/v1/stats": lambda: stats(service),
        "/v1/cache/stats": lambda: cache_stats(service),
        "/v1/cache/experts": lambda: expert_report(
            service.thread.snapshot, running=service.thread.running is not None
        ),
        "/v1/capabilities": lambda: capabilities(service.facts),
    }
    request_log = RequestLog(folded={HEALTH, *reports})
    metrics = Metrics(service, request_log.counts)
    repeated = RepeatedReports(service, request_log)
    healthy = repeated.endpoint(HEALTH, lambda: health(service)[0])
    routes = [
        Route("/", StatusPage.load().answer, methods=["GET"]),
        *(Route(path, repeated.endpoint(path, make), methods=["GET"]) for path, make in reports.items()),
        Route("/v1/models/{model:path}", one_model, methods=["GET"]),
        Route("/v1/chat/completions", AnswerEndpoint(service, read_chat), methods=["POST"]),
        Route("/v1/completions", AnswerEndpoint(service, read_completion), methods=["POST"]),
        Route("/v1/responses", AnswerEndpoint(service, read_response), methods=["POST"]),
        Route("/v1/messages", AnswerEndpoint(service, read_messages), methods=["POST"]),
        Route("/v1/messages/count_tokens", CountEndpoint(service), methods=["POST"]),
        Route(HEALTH, health_report, methods=["GET"]),
        Route("/metrics", metrics_page, methods=["GET"]),
    ]
    request_log.name_paths(routes)
    gate = RequestGate(service)
    app = Starlette(
        routes=routes,
        middleware=[Middleware(request_log.around), *_access_rules(access, service), Middleware(gate.around)],
        exception_handlers={HTTPException: _http_error},
    )
    app.state.gate, app.state.repeated, app.state.request_log = gate, repeated, request_log
    return app


def _access_rules(access: Access, service: InferenceService) -> list[Middleware]:
    """From the outermost on: a browser's preflight shows no key, so CORS answers before the key is asked."""
    guard = OriginGuard(access.cors_origins, access.trusted_hosts, service.limits)
    rules = [Middleware(guard.around)]
    if access.cors_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=access.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=["x-request-id", "retry-after"],
        )
        rules.append(cors)
    if access.api_key is not None:
        rules.append(Middleware(ApiKeyGuard(access.api_key, service.limits).around))
    return rules


class RequestGate:
    """Counts open requests, and refuses new ones while the server loads or drains.

    Attributes:
        open: requests whose handlers have not returned.
    """

    def __init__(self, service: InferenceService) -> None:
        """Args: service: says whether the server loads or drains."""
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
                service, path = self._service, scope["path"]
                if not service.loaded and path != HEALTH:
                    await refuse(service.loading(), service.limits, scope, receive, send)
                elif service.draining and path not in OPERATORS_PATHS:
                    await refuse(service.shutting_down(), service.limits, scope, receive, send)
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
    record_of(request.scope).error = code
    told = BadRequestError(message, code=code)
    told.status = error.status_code
    answer = error_response(told, path)
    answer.headers.update(error.headers or {})
    return answer


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")
