"""Owns the body of `/metrics`: what the server counts anyway, as Prometheus reads it (README.md: the names).

It reads plain numbers and the generation thread's latest snapshot, so that a scrape neither stops nor locks
anything. It has a registry of its own: an embedding program's metrics stay its own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from mach_decode.memory_watch import MemoryState
from mach_server.inference_service import InferenceService
from mach_server.latency_histogram import LatencyHistogram
from mach_server.serving_facts import ServingFacts
from mach_store.machine_memory import peak_rss_bytes

BANK_COUNTERS = {
    "hits": "Experts that a forward pass needed and found in memory",
    "misses": "Experts that a forward pass needed and that were read from disk",
    "evictions": "Experts that left the bank for another",
    "prefetched": "Experts whose read was begun because they would probably be needed",
    "prefetch_used": "Experts that a forward pass needed and whose read had been begun before",
    "bytes_read": "Bytes of experts read from disk",
    "read_seconds": "Seconds spent in reads of experts",
    "wait_seconds": "Seconds in which a forward pass stood still for a read of experts",
}
"""Field of `streaming_summary` → its help; each is `mach_bank_<field>_total`."""

BANK_GAUGES = {
    "bank_slots": ("mach_bank_slots", "Experts that the bank holds at most"),
    "experts_resident": ("mach_bank_slots_used", "Experts in memory"),
    "bank_bytes": ("mach_bank_bytes", "Memory allocated for experts"),
}
"""Field of `streaming_summary` → the gauge's name and help."""


class Metrics:
    """What one server tells Prometheus."""

    def __init__(self, service: InferenceService, requests: Counter[tuple[str, int]]) -> None:
        """Args: service: what is reported; requests: (endpoint, status) → how many were answered."""
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_ServerCollector(service, requests))
        ProcessCollector(registry=self._registry)  # memory, CPU, open files; nothing where there is no /proc

    def page(self, accept: str) -> tuple[bytes, str]:
        """The body and its media type. Args: accept: the request's Accept, which may ask for OpenMetrics."""
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type


class _ServerCollector(Collector):
    """Makes every family anew for each scrape."""

    def __init__(self, service: InferenceService, requests: Counter[tuple[str, int]]) -> None:
        self._service, self._requests = service, requests

    def collect(self) -> Iterator[Metric]:
        """The families."""
        yield from self._requests_and_queue()
        yield from self._answers()
        yield from self._engine()

    def _requests_and_queue(self) -> Iterator[Metric]:
        service, thread = self._service, self._service.thread
        answered = CounterMetricFamily(
            "mach_http_requests",
            "HTTP requests by endpoint and status; 499 is a client that left before its answer",
            labels=["endpoint", "status"],
        )
        for (endpoint, status), count in self._requests.items():
            answered.add_metric([endpoint, str(status)], count)
        yield answered
        yield GaugeMetricFamily("mach_queue_length", "Requests that wait for the engine", thread.waiting)
        limit = service.limits.queue_length
        yield GaugeMetricFamily("mach_queue_limit", "Requests that may wait for the engine", limit)
        running = int(thread.running is not None)
        yield GaugeMetricFamily("mach_requests_running", "Answers being generated", running)
        text = "Requests for answers being read, tokenized, queued or answered"
        yield GaugeMetricFamily("mach_requests_open", text, service.admitted)

    def _answers(self) -> Iterator[Metric]:
        counts = self._service.thread.counts
        outcomes = CounterMetricFamily("mach_answers", "Answers by how they ended", labels=["outcome"])
        for outcome in ("completed", "cancelled", "withdrawn", "failed"):
            outcomes.add_metric([outcome], getattr(counts, outcome))
        yield outcomes
        text = "Prompt tokens processed"
        yield CounterMetricFamily("mach_prompt_tokens", text, counts.prefilled_tokens)
        text = "Tokens generated"
        yield CounterMetricFamily("mach_completion_tokens", text, counts.generated_tokens)
        yield _histogram(
            "mach_time_to_first_token_seconds",
            "From a prompt's entry into the queue to its first token",
            counts.first_token_latency,
        )
        yield _histogram(
            "mach_inter_token_latency_seconds", "Between two tokens of one answer", counts.inter_token_latency
        )

    def _engine(self) -> Iterator[Metric]:
        snapshot = self._service.thread.snapshot
        for name, text in BANK_COUNTERS.items():
            yield CounterMetricFamily(f"mach_bank_{name}", text, snapshot.store[name])
        for field, (name, text) in BANK_GAUGES.items():
            yield GaugeMetricFamily(name, text, snapshot.store[field])
        yield from _forecast(snapshot.forecast)
        yield from _pressure(self._service.facts, self._service.thread.memory_state())
        for name, value in snapshot.memory.items():
            yield GaugeMetricFamily(f"mach_{name}", "MLX's own count of its memory", value)
        text = "The most memory that this process has had resident"
        yield GaugeMetricFamily("mach_peak_resident_memory_bytes", text, peak_rss_bytes())
        age = time.monotonic() - snapshot.taken
        text = "How old the figures of bank and MLX are; about a second at most while tokens are made"
        yield GaugeMetricFamily("mach_snapshot_age_seconds", text, age)


def _forecast(forecast: dict[str, Any]) -> Iterator[Metric]:
    """The curve's points that have a prediction; none where every expert is in memory."""
    sizes = GaugeMetricFamily(
        "mach_bank_forecast_bytes",
        "Memory of a bank of so many times the present size, at most of one with every expert",
        labels=["relative"],
    )
    rates = GaugeMetricFamily(
        "mach_bank_forecast_hit_rate", "Hit rate that it would have while decoding", labels=["relative"]
    )
    speeds = GaugeMetricFamily(
        "mach_bank_forecast_tokens_per_second", "Speed that it would decode at", labels=["relative"]
    )
    for point in forecast["points"] or ():
        label = [f"{point['relative']:g}"]
        for family, field in ((sizes, "bank_bytes"), (rates, "hit_rate"), (speeds, "tokens_per_second")):
            if point[field] is not None:
                family.add_metric(label, point[field])
    yield from (sizes, rates, speeds)


def _histogram(name: str, text: str, histogram: LatencyHistogram) -> HistogramMetricFamily:
    buckets, total = histogram.read()
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=total)


def _pressure(facts: ServingFacts, state: MemoryState) -> Iterator[Metric]:
    text = "Memory for experts as declared at the start; the bank never grows beyond it"
    yield GaugeMetricFamily("mach_bank_declared_bytes", text, facts.bank_bytes)
    text = "Memory set apart for keys and values"
    yield GaugeMetricFamily("mach_kv_budget_bytes", text, facts.kv_budget_bytes)
    text = "Memory that is kept free by shrinking the bank; 0 where nobody watches"
    yield GaugeMetricFamily("mach_memory_reserve_bytes", text, state.reserve_bytes)
    if state.reading is not None and state.reading.room_bytes is not None:
        text = "Memory that may still be taken on this machine, or in this container"
        yield GaugeMetricFamily("mach_memory_room_bytes", text, state.reading.room_bytes)
    changes = CounterMetricFamily(
        "mach_bank_resizes", "Changes of the bank's size under memory pressure", labels=["direction"]
    )
    changes.add_metric(["shrink"], state.shrinks)
    changes.add_metric(["grow"], state.grows)
    yield changes
