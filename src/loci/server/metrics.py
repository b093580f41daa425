"""What happened, counted for Prometheus, from the same events that log and tests read."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from loci.core.event import Event
from loci.run.batch import Batch

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics(Collector):
    """Counters fed by events; bytes and queues are read when they are asked for."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.registry = CollectorRegistry()
        self._ended = Counter(
            "loci_requests_ended", "Requests by how they ended.", ["reason"], registry=self.registry
        )
        self._refused = Counter(
            "loci_requests_refused", "Requests that had to come back later.", registry=self.registry
        )
        self._tokens = Counter(
            "loci_tokens",
            "Tokens read, found read before, and made.",
            ["kind"],
            registry=self.registry,
        )
        self._first_s = Histogram(
            "loci_first_token_seconds",
            "From the request to its first token.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self._whole_s = Histogram(
            "loci_request_seconds",
            "From the request to its end.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self._budget = Gauge(
            "loci_budget_bytes", "What a tier may hold.", ["tier"], registry=self.registry
        )
        for tier, limit in batch.plan.budget.limits().items():
            self._budget.labels(tier).set(limit)
        self.registry.register(self)
        self.stop = batch.events.listen(self._take)

    def text(self) -> bytes:
        """Return everything in Prometheus's form."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Yield what is true now."""
        load, ledger = self._batch.load(), self._batch.ledger
        held = GaugeMetricFamily("loci_held_bytes", "Bytes held now.", labels=["tier", "kind"])
        for tier in self._batch.plan.budget.limits():
            for kind, nbytes in ledger.by_kind(tier).items():
                held.add_metric([tier, kind], nbytes)
        yield held
        requests = GaugeMetricFamily("loci_requests", "Requests now.", labels=["state"])
        requests.add_metric(["running"], load.running)
        requests.add_metric(["waiting"], load.waiting)
        requests.add_metric(["out"], load.out)
        yield requests
        yield GaugeMetricFamily(
            "loci_kept_bytes", "Keys and values kept for others.", value=load.kept_bytes
        )
        yield GaugeMetricFamily(
            "loci_swapped_bytes", "Keys and values of requests put out.", value=load.swapped_bytes
        )
        yield GaugeMetricFamily("loci_step_seconds", "A step of late.", value=load.step_s)

    def _take(self, event: Event) -> None:
        data = event.data
        if event.name == "run.refuse":
            self._refused.inc()
        if event.name != "run.answer":
            return
        self._ended.labels(data["reason"]).inc()
        self._tokens.labels("read").inc(data["prompt"] - data["reused"])
        self._tokens.labels("reused").inc(data["reused"])
        self._tokens.labels("made").inc(data["new"])
        if data["first_token_s"] is not None:
            self._first_s.observe(data["first_token_s"])
        self._whole_s.observe(data["whole_s"])
