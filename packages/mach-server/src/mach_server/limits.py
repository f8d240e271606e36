"""Owns every bound that keeps the server's memory and waiting finite."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one server; seconds and bytes.

    Attributes:
        body_bytes: longest request body; a longer one is answered with 413.
        discarded_bytes: how much of a refused body is read and thrown away, so that a client that sends
            before it reads can read its 413.
        body_seconds: time that a body may take to arrive; then 408.
        queue_length: requests that may wait behind the running one; the next gets 429.
        retry_after: what Retry-After says, in whole seconds.
        client_buffer_events: tokens that one client may be behind; a client that is further behind does not
            read, and its generation is cancelled.
        send_buffer_bytes: SO_SNDBUF of connections; None leaves it to the system, which may then buffer some
            megabytes for each client.
        stuck_client_seconds: time that sent bytes may go unacknowledged (TCP_USER_TIMEOUT, Linux only).
        keep_alive_seconds: silence after which a stream gets a comment that says how far its answer is, so
            that no proxy takes it for dead. The first one carries the status line, 200: a failure after it
            is told as an event.
        stop_strings: stop strings of one request to OpenAI's endpoints.
        stop_sequences: the same for Anthropic's.
        stop_string_length: characters of one stop string.
        logit_biases: tokens in the logit_bias of one request.
        tools: functions in one request.
        measured_prompt_tokens: tokens of a prompt whose log-probabilities are asked for: each takes some
            kilobytes with its alternatives.
        prompt_tokens: longest prompt; None is what the context holds. A longer one is answered with 400.
        request_seconds: time that an answer may take from its arrival on, queue included; None is no limit.
        drain_seconds: time that running requests have to finish after SIGTERM.
        shutdown_seconds: time that cancelled requests and open connections have after that.
    """

    body_bytes: int = 8 << 20
    discarded_bytes: int = 64 << 20
    body_seconds: float = 60.0
    queue_length: int = 32
    retry_after: int = 5
    client_buffer_events: int = 4096
    send_buffer_bytes: int | None = None
    stuck_client_seconds: float = 60.0
    keep_alive_seconds: float = 5.0
    stop_strings: int = 4
    stop_sequences: int = 16
    stop_string_length: int = 1024
    logit_biases: int = 1024
    tools: int = 128
    measured_prompt_tokens: int = 16_384
    prompt_tokens: int | None = None
    request_seconds: float | None = None
    drain_seconds: float = 30.0
    shutdown_seconds: float = 5.0
