from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from willitrun_here.fleet.errors import UnreachableError
from willitrun_here.fleet.exporters import ansible, netbox, nfd, otlp, textfile
from willitrun_probe.machine import Source

NOW = datetime(2026, 11, 21, 22, 10, tzinfo=UTC)


def probed(machine):
    sources = (
        Source(name="nvml", outcome="answered", seconds=0.25),
        Source(name='odd"\\\n', outcome="failed", seconds=1.0),
        Source(name="amdsmi", outcome="absent", seconds=0.0),
    )
    return replace(machine, sources=sources)


def test_the_textfile_is_read_by_prometheus_own_parser(make_machine):
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415

    reporting = textfile.Reporting(delivered_at=1790000000.0, failures=0, waiting=2, dropped=7)
    plan = textfile.PlannedSpeed(model="toy-8b", quant="Q4_K_M", engine="llama.cpp", decode_tokens_per_s=41.5)
    text = textfile.textfile(probed(make_machine()), reporting, [plan]).decode()
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["willitrun_report_success",] == 1.0
    assert samples["willitrun_report_timestamp_seconds",] == 1790000000.0
    assert samples["willitrun_spool_reports",] == 2.0
    assert samples["willitrun_spool_dropped_total",] == 7.0
    assert samples["willitrun_backend_success", ("backend", "nvml")] == 1.0
    assert samples["willitrun_backend_success", ("backend", 'odd"\\\n')] == 0.0
    assert ("willitrun_backend_success", ("backend", "amdsmi")) not in samples
    key = ("willitrun_plan_decode_tokens_per_second", ("engine", "llama.cpp"), ("model", "toy-8b"), ("quant", "Q4_K_M"))
    assert samples[key] == 41.5


def test_the_textfile_has_no_timestamps_and_one_help_a_metric(make_machine):
    text = textfile.textfile(probed(make_machine()), textfile.Reporting()).decode()
    for line in text.splitlines():
        assert line.startswith("#") or re.fullmatch(r"\S+(\{.*\})? \S+", line), line
    helps = re.findall(r"^# HELP (\S+)", text, re.MULTILINE)
    assert len(helps) == len(set(helps))
    assert "willitrun_report_timestamp_seconds" not in text  # never delivered is no time, and not 1970


def parse_feature_file(text):
    """The rules of NFD's local source: directives in comments, KEY=VALUE, KEY alone means true."""
    assert len(text.encode()) <= 64 * 1024
    features, expiry = {}, None
    for line in text.splitlines():
        if line.startswith("#"):
            directive = line.lstrip("# ").removeprefix("+")
            if directive.startswith("expiry-time="):
                expiry = datetime.fromisoformat(directive.partition("=")[2])
            continue
        key, _, value = line.partition("=")
        features[key] = value or "true"
    return features, expiry


LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


def test_features_are_valid_labels_that_expire(make_machine):
    machine = make_machine(gpus=8, total=141, engines=(("llama.cpp", "b7001"), ("vllm", None)))
    text = nfd.feature_file(machine, now=NOW, runs={"llama-3.3-70b-instruct": "Q4_K_M"})
    features, expiry = parse_feature_file(text)
    assert (expiry - NOW).total_seconds() == 7200
    assert features["willitrun.largest-gpu-gib"] == "141"
    assert features["willitrun.gpus"] == "8"
    assert features["willitrun.runs.llama-3.3-70b-instruct"] == "q4-k-m"
    assert features["willitrun.gpu-model"] == "nvidia-geforce-rtx-3090"
    for key, value in features.items():
        assert LABEL_NAME.fullmatch(key)
        assert LABEL_NAME.fullmatch(value)


def test_labels_never_change_with_free_memory(make_machine):
    files = [nfd.feature_file(make_machine(free=free, ram_free=free), now=NOW) for free in (1, 20)]
    assert files[0] == files[1]


@given(st.text(max_size=200))
def test_any_name_becomes_a_label_value(text):
    assert LABEL_NAME.fullmatch(nfd.slug(text))


def test_ten_thousand_models_stay_below_the_limit_of_the_file(make_machine):
    text = nfd.feature_file(make_machine(), now=NOW, runs={f"model-{number:05d}": "Q4_K_M" for number in range(10_000)})
    parse_feature_file(text)


def test_the_ansible_fact_is_json(make_machine):
    fact = json.loads(ansible.local_fact(make_machine(gpus=2), runs={"toy-8b": "Q4_K_M"}))
    assert [gpu["memory_total_bytes"] for gpu in fact["gpus"]] == [24 * 1024**3] * 2
    assert fact["runs"] == {"toy-8b": "Q4_K_M"}


def test_ansible_reads_the_fact(make_machine, tmp_path):
    program = shutil.which("ansible")
    if program is None:
        pytest.skip("no ansible here: apt-get install ansible-core")
    (tmp_path / "willitrun.fact").write_text(ansible.local_fact(make_machine()))
    done = subprocess.run(
        [program, "localhost", "-m", "ansible.builtin.setup", "-a", f"fact_path={tmp_path} filter=ansible_local"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert '"name": "NVIDIA GeForce RTX 3090"' in done.stdout, done.stderr


def test_netbox_gets_devices_and_discovered_items(make_machine):
    document = netbox.netbox([make_machine("a", gpus=2), make_machine("b", gpus=0)])
    assert [device["name"] for device in document["devices"]] == ["a", "b"]
    assert [(item["device"], item["name"], item["discovered"]) for item in document["inventory_items"]] == [
        ("a", "gpu0", True), ("a", "gpu1", True),
    ]  # fmt: skip
    lines = netbox.inventory_items_csv(document).splitlines()
    assert lines[0] == "device,name,manufacturer,part_id,discovered,description"
    assert lines[1] == "a,gpu0,NVIDIA,NVIDIA GeForce RTX 3090,true,24.0 GiB 0000:01:00.0"


@pytest.fixture
def collector():
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="pip install 'willitrun-here[otlp]'")
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/metrics", received
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_collector_receives_the_gpus(collector, make_machine):
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest  # noqa: PLC0415

    endpoint, received = collector
    otlp.push(make_machine(gpus=2, free=6), endpoint, host_id="app-specific")
    message = ExportMetricsServiceRequest.FromString(received[0][1])
    (resource,) = message.resource_metrics
    assert {item.key: item.value.string_value for item in resource.resource.attributes}["host.id"] == "app-specific"
    metrics = {metric.name: metric for metric in resource.scope_metrics[0].metrics}
    points = metrics["hw.gpu.memory.usage"].sum.data_points
    assert sorted(point.as_int for point in points) == [18 * 1024**3] * 2
    assert metrics["hw.gpu.memory.utilization"].gauge.data_points[0].as_double == 0.75
    attributes = {item.key: item.value.string_value for item in points[0].attributes}
    assert (attributes["hw.type"], attributes["hw.vendor"]) == ("gpu", "nvidia")


def test_a_collector_that_is_not_there_is_an_error(collector, make_machine, caplog):
    with pytest.raises(UnreachableError):
        otlp.push(make_machine(), "http://127.0.0.1:1/v1/metrics", timeout_s=1.0)
