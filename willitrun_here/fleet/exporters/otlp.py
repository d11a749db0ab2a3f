"""Pushing GPU memory to an OpenTelemetry collector over OTLP/HTTP, for sites without a vendor's exporter.

Names: https://opentelemetry.io/docs/specs/semconv/hardware/gpu/, all still "Development". `host.id` is there the raw
machine id; this sends the application-specific one, as machine-id(5) asks.
"""

from __future__ import annotations

from willitrun_here import __version__
from willitrun_here.fleet.errors import FleetError, UnreachableError
from willitrun_here.fleet.facts import gpu_keys
from willitrun_probe.machine import Gpu, Machine


def push(machine: Machine, endpoint: str, *, host_id: str | None = None, timeout_s: float = 10.0) -> None:
    """Send the machine's GPUs once; `endpoint` is the whole address, as `http://127.0.0.1:4318/v1/metrics`.

    Raises FleetError without the library, UnreachableError when the collector did not take it.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415
        from opentelemetry.metrics import CallbackOptions, Observation  # noqa: PLC0415
        from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricExportResult  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    except ImportError as error:
        raise FleetError("the OpenTelemetry library is missing", "pip install 'willitrun-here[otlp]'") from error

    attributes = {"host.name": machine.name} | ({"host.id": host_id} if host_id is not None else {})
    exporter = OTLPMetricExporter(endpoint=endpoint, timeout=timeout_s)
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], Resource(attributes), shutdown_on_exit=False)
    meter = provider.get_meter("willitrun-here", __version__)
    named = list(zip(gpu_keys(machine), machine.gpus, strict=True))

    def limit(_options: CallbackOptions) -> list[Observation]:
        return [
            Observation(gpu.memory_total_bytes, _attributes(key, gpu))
            for key, gpu in named
            if gpu.memory_total_bytes is not None
        ]

    def usage(_options: CallbackOptions) -> list[Observation]:
        return [Observation(used, _attributes(key, gpu)) for key, gpu in named if (used := _used(gpu)) is not None]

    def utilization(_options: CallbackOptions) -> list[Observation]:
        return [
            Observation(used / gpu.memory_total_bytes, _attributes(key, gpu))
            for key, gpu in named
            if (used := _used(gpu)) is not None and gpu.memory_total_bytes
        ]

    meter.create_observable_up_down_counter("hw.gpu.memory.limit", [limit], unit="By")
    meter.create_observable_up_down_counter("hw.gpu.memory.usage", [usage], unit="By")
    meter.create_observable_gauge("hw.gpu.memory.utilization", [utilization], unit="1")
    data = reader.get_metrics_data()
    taken = data is not None and exporter.export(data) is MetricExportResult.SUCCESS
    exporter.shutdown()
    provider.shutdown()
    if not taken:
        raise UnreachableError(f"the collector at {endpoint} did not take the metrics")


def _attributes(key: str, gpu: Gpu) -> dict[str, str]:
    known = {"hw.id": key, "hw.type": "gpu", "hw.model": gpu.name, "hw.vendor": gpu.vendor}
    return known if gpu.driver_version is None else known | {"hw.driver_version": gpu.driver_version}


def _used(gpu: Gpu) -> int | None:
    if gpu.memory_total_bytes is None or gpu.memory_free_bytes is None:
        return None
    return gpu.memory_total_bytes - gpu.memory_free_bytes
