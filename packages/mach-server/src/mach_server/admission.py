"""Owns what endpoints with a body do alike: a place and the body at the start, the books on a failure."""

from __future__ import annotations

import logging
from contextlib import ExitStack

from starlette.requests import Request

from mach.errors import MachError
from mach_server.errors import ApiError, UnavailableError, api_error_of
from mach_server.inference_service import InferenceService
from mach_server.request_body import discard_body, read_body
from mach_server.request_record import RequestRecord

log = logging.getLogger("mach.server")


async def admitted_body(request: Request, service: InferenceService, place: ExitStack) -> bytes:
    """The body of a request that has got a place, which `place` gives back.

    Raises:
        ApiError: there is no place, or the body cannot be read. A body without a place is thrown away.
        ClientDisconnect: the client left.
    """
    try:
        place.enter_context(service.admission())
    except ApiError:
        await discard_body(request, service.limits)
        raise
    return await read_body(request, service.limits)


def failure_of(error: Exception, record: RequestRecord, prompt_field: str = "messages") -> ApiError:
    """What a client is told of `error`, which is noted in `record` and, if it is a bug, logged.

    Args:
        error: what ended the request.
        record: the request's.
        prompt_field: the request field that holds the prompt.
    """
    if not isinstance(error, MachError):
        log.exception("request %s failed", record.id)
    told = api_error_of(error, prompt_field)
    record.error = told.code or told.type
    return told


def count_rejection(error: ApiError, service: InferenceService) -> None:
    """Count a request that was answered with `error` alone, unless the server is to blame for it."""
    service.rejected += error.status < 500 or isinstance(error, UnavailableError)
