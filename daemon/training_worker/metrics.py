"""Metrics of a worker for Prometheus, from the records that it is told."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from training_worker.errors import SettingsError
from training_worker.observations import AttemptEnded, AttemptStarted


class Metrics:
    """Counters and gauges on a registry of their own. Labels are closed lists: none grows with the jobs."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._running = Gauge(
            "training_worker_jobs_running", "Jobs that this worker owns.", ["training_type"], registry=self.registry
        )
        self._ended = Counter(
            "training_worker_attempts_total",
            "Attempts that ended, by how.",
            ["training_type", "outcome"],
            registry=self.registry,
        )
        self._gpu_seconds = Counter(
            "training_worker_gpu_seconds_total",
            "Seconds for which a trainer had a card, by how its attempt ended.",
            ["training_type", "outcome"],
            registry=self.registry,
        )
        self._wasted = Counter(
            "training_worker_wasted_gpu_seconds_total",
            "Those of these seconds that led to nothing that is kept.",
            ["training_type", "outcome"],
            registry=self.registry,
        )
        self._dollars = Counter(
            "training_worker_cost_usd_total",
            "What those seconds cost at the card's price, in US dollars.",
            ["training_type", "outcome"],
            registry=self.registry,
        )

    def observe(self, record: AttemptStarted | AttemptEnded) -> None:
        """Take in what happened."""
        match record:
            case AttemptStarted():
                self._running.labels(record.training_type).inc()
            case AttemptEnded():
                labels = (record.training_type, record.outcome)
                self._running.labels(record.training_type).dec()
                self._ended.labels(*labels).inc()
                self._gpu_seconds.labels(*labels).inc(record.usage.gpu_seconds)
                self._wasted.labels(*labels).inc(record.usage.wasted_gpu_seconds)
                self._dollars.labels(*labels).inc(record.usage.cost_usd or 0)


@contextmanager
def served(host: str, port: int) -> Iterator[Metrics]:
    """Metrics that are scraped at ``/metrics``. Raises `SettingsError` if the port cannot be had."""
    metrics = Metrics()
    try:
        server, thread = start_http_server(port, host, registry=metrics.registry)
    except OSError as error:
        raise SettingsError(f"cannot serve metrics on {host}:{port}: {error.strerror}") from None
    try:
        yield metrics
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
