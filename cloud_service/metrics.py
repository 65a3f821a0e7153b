"""Prometheus metrics of the service, in a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from splitserve.wire import RefusalCode, Timings

BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
SIZES = tuple(1024 * 4**power for power in range(8))


class Metrics:
    """What the service counts. Labels are cuts and refusal codes, both bounded."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        prefix, registry = "splitserve_", self.registry
        self._requests = Counter(
            f"{prefix}requests", "Requests answered", ["cut"], registry=registry
        )
        self._refusals = Counter(
            f"{prefix}refusals", "Requests refused", ["reason"], registry=registry
        )
        self._stages = Histogram(
            f"{prefix}stage_seconds",
            "Time of each stage",
            ["stage"],
            registry=registry,
            buckets=BUCKETS,
        )
        self._received = Histogram(
            f"{prefix}request_bytes", "Size of request frames", registry=registry, buckets=SIZES
        )
        self.pending = Gauge(f"{prefix}pending", "Requests that wait or run", registry=registry)
        self.ready = Gauge(f"{prefix}ready", "1 while the service takes work", registry=registry)

    def answered(self, cut: str, received: int, timings: Timings) -> None:
        """Count one reply."""
        self._requests.labels(cut).inc()
        self._received.observe(received)
        self._stages.labels("queue").observe(timings.queue_s)
        self._stages.labels("decode").observe(timings.decode_s)
        self._stages.labels("compute").observe(timings.compute_s)

    def refused(self, code: RefusalCode) -> None:
        """Count one refusal."""
        self._refusals.labels(code.name.lower()).inc()

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)
