"""The server's own metrics for Prometheus: sums over the fleet and its own work, never one series a machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

if TYPE_CHECKING:
    from willitrun_here.fleet.query import Totals

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """Counters of one server in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "willitrun_fleet_request_duration_seconds", "Time to answer a request.", ("operation", "status"),
            buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self._reports = Counter(
            "willitrun_fleet_reports", "Reports by what became of them.", ("result",), registry=self._registry
        )
        self._machines = Gauge("willitrun_fleet_machines", "Machines by status.", ("status",), registry=self._registry)
        self._gpus = Gauge("willitrun_fleet_gpus", "GPUs by model.", ("model",), registry=self._registry)
        self._memory = Gauge(
            "willitrun_fleet_memory_bytes", "Memory of the fleet.", ("kind", "state"), registry=self._registry
        )

    def request(self, operation: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(operation, str(status)).observe(seconds)

    def report(self, result: str) -> None:
        """Count what became of a report."""
        self._reports.labels(result).inc()

    def text(self, totals: Totals) -> bytes:
        """Return everything in Prometheus' text format."""
        for status in ("live", "late", "gone"):
            self._machines.labels(status).set(getattr(totals, status))
        self._gpus.clear()
        for model, count in totals.gpus.items():
            self._gpus.labels(model).set(count)
        for kind, state, value in (
            ("gpu", "total", totals.vram_total_bytes),
            ("gpu", "free", totals.vram_free_bytes),
            ("host", "total", totals.ram_total_bytes),
            ("host", "free", totals.ram_free_bytes),
        ):
            self._memory.labels(kind, state).set(value)
        return generate_latest(self._registry)
