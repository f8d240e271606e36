"""Owns mach-server's exception tree, and what each error looks like on the wire.

MachError (mach.errors)
└── ServerError
    ├── BindError            the address cannot be listened on
    ├── SettingError         an environment variable holds what it cannot
    └── ApiError             an answer other than 2xx: status, type, param, code
        ├── BadRequestError      400
        ├── UnauthorizedError    401, with WWW-Authenticate
        ├── ForbiddenError       403
        ├── ModelNotFoundError   404
        ├── BodyTimeoutError     408
        ├── BodyTooLargeError    413
        ├── QueueFullError       429, with Retry-After
        ├── GenerationError      500
        ├── UnavailableError     503, with Retry-After
        └── RequestTimeoutError  504
"""

from __future__ import annotations

import msgspec

from mach.errors import MachError
from mach_decode.errors import KvBudgetError, PromptTooLongError, SamplingError, TokenizerError


class ServerError(MachError):
    """Base of every error that mach-server raises by itself."""


class BindError(ServerError):
    """The address cannot be listened on; the message names it and says why."""


class SettingError(ServerError):
    """An environment variable holds what it cannot; the message names it."""


class ApiError(ServerError):
    """A request that is answered with an error.

    Attributes:
        status: HTTP status.
        type: OpenAI's coarse kind, e.g. `invalid_request_error`.
        param: the request field at fault, or None.
        code: a fixed word for programs, or None.
        retry_after: seconds until another attempt makes sense, or None.
    """

    status = 500
    type = "server_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.param, self.code, self.retry_after = param, code, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with the answer."""
        return {} if self.retry_after is None else {"retry-after": str(self.retry_after)}

    def body(self) -> bytes:
        """The JSON object that OpenAI's clients expect."""
        detail = ErrorDetail(message=str(self), type=self.type, param=self.param, code=self.code)
        return msgspec.json.encode(ErrorBody(error=detail))


class BadRequestError(ApiError):
    """The request is malformed, or asks for what cannot be honoured."""

    status = 400
    type = "invalid_request_error"


class UnauthorizedError(ApiError):
    """The request does not show the server's API key."""

    status = 401
    type = "invalid_request_error"

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with the answer."""
        return {"www-authenticate": "Bearer"}


class ForbiddenError(ApiError):
    """The request comes from a web page that may not use the server."""

    status = 403
    type = "permission_error"


class ModelNotFoundError(ApiError):
    """The request names a model that is not loaded."""

    status = 404
    type = "invalid_request_error"


class BodyTimeoutError(ApiError):
    """The request's body did not arrive in time."""

    status = 408
    type = "invalid_request_error"


class BodyTooLargeError(ApiError):
    """The request's body is longer than allowed."""

    status = 413
    type = "invalid_request_error"


class QueueFullError(ApiError):
    """As many requests as allowed are waiting already."""

    status = 429
    type = "rate_limit_error"


class GenerationError(ApiError):
    """The engine failed while it answered; the next request is not affected."""


class UnavailableError(ApiError):
    """The server takes no requests: it loads its model, is ending, or its generation thread has died."""

    status = 503


class RequestTimeoutError(ApiError):
    """The answer was not whole in time."""

    status = 504

    @property
    def headers(self) -> dict[str, str]:
        """OpenAI's and Anthropic's libraries would otherwise ask for the same long answer again."""
        return {"x-should-retry": "false"}


class ErrorDetail(msgspec.Struct, kw_only=True):
    """The `error` object; `param` and `code` are null where they have nothing to say."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, kw_only=True):
    """The whole body of an error answer, and of an error in the middle of a stream."""

    error: ErrorDetail


class AnthropicDetail(msgspec.Struct, kw_only=True):
    """The `error` object of Anthropic's API."""

    type: str
    message: str


class AnthropicErrorBody(msgspec.Struct, kw_only=True):
    """Anthropic's form of an error, as a body and as the data of an event."""

    error: AnthropicDetail
    type: str = "error"


_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def anthropic_body(error: ApiError) -> bytes:
    """`error` as Anthropic's clients expect it."""
    kind = _ANTHROPIC_TYPES.get(error.status, "api_error")
    return msgspec.json.encode(AnthropicErrorBody(error=AnthropicDetail(type=kind, message=str(error))))


def error_body_for(path: str, error: ApiError) -> bytes:
    """`error` in the form of the API that `path` belongs to."""
    return anthropic_body(error) if path.startswith("/v1/messages") else error.body()


def api_error_of(error: BaseException, field: str = "messages") -> ApiError:
    """How an exception of the engine is told to the client that caused it.

    Args:
        error: what was raised.
        field: the request field that holds the prompt.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PromptTooLongError):
        return BadRequestError(str(error), param=field, code="context_length_exceeded")
    if isinstance(error, KvBudgetError):
        param = field if error.prompt_tokens >= error.tokens else "max_tokens"
        return BadRequestError(str(error), param=param, code="kv_cache_exceeded")
    if isinstance(error, SamplingError):
        return BadRequestError(str(error), param=error.parameter, code="invalid_value")
    if isinstance(error, TokenizerError):
        return BadRequestError(str(error), param=field)
    if isinstance(error, MachError):
        return GenerationError(str(error), code="generation_failed")
    return GenerationError("the engine failed; the server's log says why", code="internal_error")
