from __future__ import annotations

import pytest

from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.vllm.versions import LATEST, batch_defaults, parse_version, rules
from willitrun_probe.units import GIB


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("0.19.0", (0, 19)),
        ("v0.11.2", (0, 11)),
        ("0.20.1rc1.dev16+g1234", (0, 20)),
        (" 0.10.1.1", (0, 10)),
        ("latest", LATEST),
        ("Nightly", LATEST),
        ("1.0", (1, 0)),
    ],
)
def test_versions_are_read_as_people_and_logs_write_them(text, version):
    assert parse_version(text) == version


@pytest.mark.parametrize("text", ["", "newest", "0", "0.9.2", "0.8.5.post1"])
def test_unknown_and_too_old_versions_are_refused_with_advice(text):
    with pytest.raises(EstimatorError) as failure:
        parse_version(text)
    assert failure.value.advice


def test_rules_change_where_the_releases_changed():
    assert rules((0, 19)).gpu_memory_utilization == 0.9
    assert rules((0, 20)).gpu_memory_utilization == 0.92
    assert not rules((0, 19)).subtracts_graphs
    assert rules((0, 20)).subtracts_graphs
    assert [rules((0, minor)).sampler_bytes_per_logit for minor in (11, 12, 16, 17)] == [14.1, 38.7, 38.7, 14.1]
    assert rules((0, 25)).in_flight_batches == 1
    assert rules((0, 26)).in_flight_batches == 2
    assert not rules((0, 20)).prints_capacity
    assert rules((0, 21)).prints_capacity
    assert rules((0, 99)).gpu_memory_utilization == rules().gpu_memory_utilization


@pytest.mark.parametrize(
    ("version", "gib", "name", "capability", "tokens", "sequences"),
    [
        ((0, 33), 179, "NVIDIA B200", "10.0", 16384, 1024),
        ((0, 27), 179, "NVIDIA B200", "10.0", 8192, 1024),
        ((0, 19), 79.19, "NVIDIA H100", "9.0", 8192, 1024),
        ((0, 19), 79.15, "NVIDIA A100 SXM4 80 GB", "8.0", 2048, 256),
        ((0, 26), 119.7, "NVIDIA GB10", "12.1", 8192, 1024),
        ((0, 33), 119.7, "NVIDIA GB10", "12.1", 2048, 256),
        ((0, 33), 23.6, "NVIDIA GeForce RTX 4090", "8.9", 2048, 256),
        ((0, 33), 69.6, "NVIDIA H200 MIG", None, 2048, 256),
    ],
)
def test_batch_defaults_follow_memory_name_and_version(version, gib, name, capability, tokens, sequences):
    found = batch_defaults(version, memory_total_bytes=int(gib * GIB), name=name, compute_capability=capability)
    assert (found.max_num_batched_tokens, found.max_num_seqs) == (tokens, sequences)
