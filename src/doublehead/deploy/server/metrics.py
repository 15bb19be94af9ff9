"""Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class ServerMetrics:
    """Counts of one server, in a registry of their own.

    Args:
        batch_size: the largest batch.
        waiting: gives how many images are taken and not yet answered.
    """

    def __init__(self, batch_size: int, waiting: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, processor time, open files
        self.requests = Counter("doublehead_requests", "Requests answered.", ("path", "status"), registry=self.registry)
        self.seconds = Histogram(
            "doublehead_request_seconds",
            "From a request's head to its answer, for /v1/detect.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch_images = Histogram(
            "doublehead_batch_images",
            "Images that went through the model at once.",
            buckets=range(1, batch_size + 1),
            registry=self.registry,
        )
        self.batch_seconds = Histogram(
            "doublehead_batch_seconds", "Time of a batch in the model.", buckets=_SECONDS, registry=self.registry
        )
        self.detections = Counter("doublehead_detections", "Objects found, of those asked for.", registry=self.registry)
        Gauge("doublehead_waiting_images", "Images taken and not yet answered.", registry=self.registry).set_function(
            waiting
        )

    def saw_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request; `path` must be one of few."""
        self.requests.labels(path, status).inc()
        if path == "/v1/detect":
            self.seconds.observe(seconds)

    def saw_batch(self, images: int, seconds: float) -> None:
        """Count a batch."""
        self.batch_images.observe(images)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self.registry)
