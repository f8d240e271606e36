"""Owns the request body of `/v1/chat/completions`: what is understood, what is harmless, what is refused.

A field that would change the answer and is not supported is refused by name; none is ignored.
"""

from __future__ import annotations

import re
import secrets
from typing import Any, Literal, TypeVar

import msgspec

from mach_decode.request import GenerationRequest
from mach_decode.sampling import SamplingParams
from mach_server.errors import BadRequestError, ModelNotFoundError
from mach_server.limits import Limits

DEFAULT_TEMPERATURE = 1.0
"""OpenAI's; the library's own default is greedy."""

_RESERVED_TEMPLATE_OPTIONS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
"""Arguments of the template's caller, which a request may not take over."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
"""OpenAI's fields that are not supported, with the values (null apart) that change nothing."""


class TextPart(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class Message(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One message; the last five fields are those that clients echo from an earlier answer."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    reasoning_content: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[Any] | None = None
    annotations: list[Any] | None = None

    def for_template(self) -> dict[str, str]:
        """What the checkpoint's chat template sees: text parts joined by newlines, as vLLM joins them."""
        content = self.content
        if not isinstance(content, str):
            content = "\n".join(part.text for part in content)
        # Templates know no developer; OpenAI made it the new name of system.
        message = {"role": "system" if self.role == "developer" else self.role, "content": content}
        if self.name is not None:
            message["name"] = self.name
        if self.reasoning_content is not None:
            message["reasoning_content"] = self.reasoning_content
        return message


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`include_obfuscation` is padding against traffic analysis; there is none, whatever it says."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body: what is honoured, then what is harmless, then what is refused unless it changes nothing."""

    model: str
    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    metadata: Any = None
    parallel_tool_calls: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    user: Any = None

    audio: Any = None
    frequency_penalty: Any = None
    function_call: Any = None
    functions: Any = None
    logit_bias: Any = None
    logprobs: Any = None
    modalities: Any = None
    n: Any = None
    prediction: Any = None
    presence_penalty: Any = None
    reasoning_effort: Any = None
    response_format: Any = None
    tool_choice: Any = None
    tools: Any = None
    top_logprobs: Any = None
    verbosity: Any = None
    web_search_options: Any = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def template_messages(self) -> list[dict[str, str]]:
        """The conversation for the chat template."""
        return [message.for_template() for message in self.messages]

    def generation(self, prompt: tuple[int, ...]) -> GenerationRequest:
        """The engine's request for this body and its rendered prompt.

        Without a seed a random one is drawn.

        Raises:
            SamplingError: a sampling parameter is out of range.
        """
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return GenerationRequest(
            prompt=prompt, max_tokens=limit, stop=self._stops(), sampling=self.sampling()
        )

    def sampling(self) -> SamplingParams:
        """How tokens are chosen; raises as `generation`."""
        off = SamplingParams()
        return SamplingParams(
            temperature=_given(self.temperature, DEFAULT_TEMPERATURE),
            top_p=_given(self.top_p, off.top_p),
            top_k=_given(self.top_k, off.top_k),
            min_p=_given(self.min_p, off.min_p),
            repetition_penalty=_given(self.repetition_penalty, off.repetition_penalty),
            seed=secrets.randbits(63) if self.seed is None else self.seed,
        )

    def _stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def check(self, model_names: frozenset[str], limits: Limits) -> None:
        """Refuse what cannot be honoured.

        Raises:
            BadRequestError, ModelNotFoundError: naming the field.
            SamplingError: a sampling parameter is out of range.
        """
        if self.model not in model_names:
            raise ModelNotFoundError(
                f"the model {self.model[:200]!r} is not loaded, but {', '.join(sorted(model_names))} is",
                param="model",
                code="model_not_found",
            )
        for name, neutral in _NEUTRAL.items():
            value = getattr(self, name)
            if value is not None and value not in neutral:
                raise BadRequestError(
                    f"{name} is not supported in this version; leave it out",
                    param=name,
                    code="unsupported_parameter",
                )
        if not self.messages:
            raise BadRequestError("messages must not be empty", param="messages")
        for index, message in enumerate(self.messages):
            if message.tool_calls:
                param = f"messages[{index}].tool_calls"
                raise BadRequestError(
                    f"{param} is not supported in this version", param=param, code="unsupported_parameter"
                )
        for name in ("max_tokens", "max_completion_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadRequestError(
                    f"{name} must be at least 1, not {value}", param=name, code="invalid_value"
                )
        if self.stream_options is not None and not self.stream:
            raise BadRequestError("stream_options is only allowed with stream: true", param="stream_options")
        reserved = sorted(_RESERVED_TEMPLATE_OPTIONS.intersection(self.chat_template_kwargs or {}))
        if reserved:
            raise BadRequestError(
                f"chat_template_kwargs must not hold {reserved[0]!r}", param="chat_template_kwargs"
            )
        self._check_stops(limits)
        self.sampling()

    def _check_stops(self, limits: Limits) -> None:
        stops = self._stops()
        if len(stops) > limits.stop_strings:
            raise BadRequestError(
                f"stop holds {len(stops)} strings, but {limits.stop_strings} are allowed", param="stop"
            )
        for stop in stops:
            if not 1 <= len(stop) <= limits.stop_string_length:
                raise BadRequestError(
                    f"a stop string must have 1 to {limits.stop_string_length} characters, not {len(stop)}",
                    param="stop",
                )


_DECODER = msgspec.json.Decoder(ChatRequest)
_PATH = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_FIELD = re.compile(r"field `(?P<field>[^`]*)`")


def parse_chat_request(body: bytes) -> ChatRequest:
    """The body as a ChatRequest, its types checked and nothing else.

    Raises:
        BadRequestError: it is not UTF-8 or not JSON, or a field is unknown, missing or of the wrong type.
    """
    try:
        return _DECODER.decode(body)
    except msgspec.ValidationError as error:
        raise _type_error(str(error)) from error
    except msgspec.DecodeError as error:
        raise BadRequestError(f"the body is not valid JSON: {error}", code="invalid_json") from error
    except UnicodeDecodeError as error:
        raise BadRequestError("the body is not valid UTF-8", code="invalid_json") from error
    except RecursionError as error:
        raise BadRequestError("the body is nested too deeply", code="invalid_json") from error


def _type_error(message: str) -> BadRequestError:
    """The error for msgspec's message, with its JSON path taken out and named as `param`."""
    found = _PATH.search(message)
    param = found["path"] if found else ""
    message = _PATH.sub("", message)
    field = _FIELD.search(message)
    if field:
        param = f"{param}.{field['field']}".removeprefix(".")
    if "unknown field" in message:
        return BadRequestError(f"{param} is not a known field", param=param, code="unknown_parameter")
    if "missing required field" in message:
        return BadRequestError(f"{param} is missing", param=param, code="missing_required_parameter")
    return BadRequestError(f"{param or 'the body'}: {message}", param=param or None, code="invalid_type")


Number = TypeVar("Number", int, float)


def _given(value: Number | None, default: Number) -> Number:
    return default if value is None else value
