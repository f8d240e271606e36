"""Owns which endpoint reads its bodies and writes its answers how: each a translation of its own API."""

from __future__ import annotations

from mach_server.answer_writer import Exchange
from mach_server.chat_request import parse_chat_request
from mach_server.chat_response import ChatWriter
from mach_server.completions_request import parse_completion_request
from mach_server.completions_response import CompletionWriter
from mach_server.inference_service import InferenceService
from mach_server.messages_request import parse_messages_request
from mach_server.messages_response import MessagesWriter
from mach_server.responses_request import parse_response_request
from mach_server.responses_response import ResponseWriter


def read_chat(body: bytes, service: InferenceService) -> Exchange:
    """`/v1/chat/completions`."""
    chat, facts = parse_chat_request(body), service.facts
    request = chat.answer_request(facts.names, service.limits)
    writer = ChatWriter(
        facts.model,
        facts.fingerprint,
        service.preparation.texts,
        include_usage=chat.include_usage,
        logprobs=request.logprobs is not None,
    )
    return Exchange(request=request, stream=bool(chat.stream), writer=writer)


def read_completion(body: bytes, service: InferenceService) -> Exchange:
    """`/v1/completions`."""
    completion, facts = parse_completion_request(body), service.facts
    request = completion.answer_request(facts.names, service.limits)
    writer = CompletionWriter(
        facts.model,
        facts.fingerprint,
        service.preparation.texts,
        include_usage=completion.include_usage,
        logprobs=request.logprobs is not None,
    )
    echo = writer.begin_with if completion.echo else None
    return Exchange(request=request, stream=bool(completion.stream), writer=writer, echo=echo)


def read_response(body: bytes, service: InferenceService) -> Exchange:
    """`/v1/responses`."""
    asked, facts = parse_response_request(body), service.facts
    request = asked.answer_request(facts.names, service.limits)
    writer = ResponseWriter(asked, request, facts.model, service.preparation.texts)
    return Exchange(request=request, stream=bool(asked.stream), writer=writer)


def read_messages(body: bytes, service: InferenceService) -> Exchange:
    """`/v1/messages`."""
    asked, facts = parse_messages_request(body), service.facts
    request = asked.answer_request(facts.names, service.limits)
    return Exchange(request=request, stream=bool(asked.stream), writer=MessagesWriter(facts.model))
