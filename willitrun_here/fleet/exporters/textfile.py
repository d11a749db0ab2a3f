"""Prometheus' textfile for node_exporter: how reporting goes and what was planned, never what other exporters give.

node_exporter's textfile collector rejects timestamps, wants the suffix `.prom` and a rename into place
(https://github.com/prometheus/node_exporter#textfile-collector). GPU temperatures and use are the vendors' exporters'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from msgspec import Struct

from willitrun_here.fleet.errors import FleetError
from willitrun_probe.machine import Machine


class Reporting(Struct, frozen=True, kw_only=True):
    """How the agent fares."""

    delivered_at: float | None = None
    """Unix time of the last full delivery."""
    failures: int = 0
    waiting: int = 0
    dropped: int = 0


class PlannedSpeed(Struct, frozen=True, kw_only=True):
    """The plan of one model that was asked for by name."""

    model: str
    quant: str
    engine: str
    decode_tokens_per_s: float


def textfile(machine: Machine, reporting: Reporting, plans: Iterable[PlannedSpeed] = ()) -> bytes:
    """Write the metrics; raises FleetError when the library for it is missing."""
    try:
        from prometheus_client import CollectorRegistry  # noqa: PLC0415 - the extra's
        from prometheus_client.exposition import generate_latest  # noqa: PLC0415
    except ImportError as error:
        raise FleetError("the Prometheus library is missing", "pip install 'willitrun-here[fleet]'") from error

    class Collector:
        def collect(self) -> Iterator[Any]:
            yield from _families(machine, reporting, tuple(plans))

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    return generate_latest(registry)


def _families(machine: Machine, reporting: Reporting, plans: tuple[PlannedSpeed, ...]) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415

    def gauge(name: str, text: str, value: float) -> Any:
        return GaugeMetricFamily(name, text, value=value)

    ok = reporting.failures == 0 and reporting.delivered_at is not None
    yield gauge("willitrun_report_success", "Whether the last report reached the fleet server.", float(ok))
    if reporting.delivered_at is not None:
        text = "When a report last reached the fleet server."
        yield gauge("willitrun_report_timestamp_seconds", text, reporting.delivered_at)
    yield gauge("willitrun_spool_reports", "Reports waiting for the fleet server.", reporting.waiting)
    text = "Reports given up for want of room."
    yield CounterMetricFamily("willitrun_spool_dropped", text, value=reporting.dropped)
    success = GaugeMetricFamily(
        "willitrun_backend_success",
        "Whether a source of the probe answered; absent ones are left out.",
        labels=["backend"],
    )
    duration = GaugeMetricFamily(
        "willitrun_backend_duration_seconds", "Time a source of the probe took.", labels=["backend"]
    )
    for source in machine.sources:
        if source.outcome != "absent":
            success.add_metric([source.name], float(source.outcome == "answered"))
            duration.add_metric([source.name], source.seconds)
    yield success
    yield duration
    speed = GaugeMetricFamily(
        "willitrun_plan_decode_tokens_per_second",
        "Expected decode speed of the best plan for a model.",
        labels=["model", "quant", "engine"],
    )
    for plan in plans:
        speed.add_metric([plan.model, plan.quant, plan.engine], plan.decode_tokens_per_s)
    yield speed
