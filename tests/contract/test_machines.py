"""Every recorded machine is described as expected, and keeps the laws of the description."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import msgspec
import pytest

from willitrun_probe.findings import CODES, driver_broken
from willitrun_probe.identity import shape_hash
from willitrun_probe.machine import Machine, from_json, to_json
from willitrun_probe.record import read_recording

MACHINES = Path(__file__).parents[1] / "machines"
NAMES = sorted(path.parent.name for path in MACHINES.glob("*/recording.json"))
BROKEN = {
    "container-without-utility",
    "container-unknown-error",
    "driver-mismatch",
    "nouveau",
    "one-gpu-lost",
}

_spec = importlib.util.spec_from_file_location("refresh_machines", MACHINES / "refresh.py")
assert _spec is not None
assert _spec.loader is not None
refresh = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(refresh)


def observed(name: str) -> Machine:
    return refresh.observe(MACHINES / name)


def test_there_are_enough_machines():
    assert len(NAMES) >= 30


@pytest.mark.parametrize("name", NAMES)
def test_description_is_the_expected_one(name):
    expected = json.loads((MACHINES / name / "expected.json").read_text())
    assert json.loads(json.dumps(refresh.comparable(observed(name)))) == expected


@pytest.mark.parametrize("name", [name for name in NAMES if list((MACHINES / name).glob("*.spec"))])
def test_children_tell_the_same_as_this_process(name):
    apart = refresh.observe(MACHINES / name, isolated=True)
    assert refresh.comparable(apart) == refresh.comparable(observed(name))


@pytest.mark.parametrize("name", NAMES)
def test_laws_of_a_description(name):
    machine = observed(name)
    assert from_json(to_json(machine)) == machine
    subjects = {found.subject for found in machine.findings}
    assert {found.code for found in machine.findings} <= set(CODES)
    for found in machine.findings:
        assert found.subject
        assert found.reason
    for gpu in machine.gpus:
        names = {gpu.name, gpu.pci_address, gpu.uuid, gpu.vendor}
        assert gpu.name.strip()
        if gpu.memory_total_bytes is None and gpu.usable:
            assert names & subjects
        if gpu.memory_total_bytes is not None:
            assert gpu.memory_total_bytes > 0
            assert gpu.memory_free_bytes is None or gpu.memory_free_bytes <= gpu.memory_total_bytes
            assert gpu.sources["memory_total_bytes"]
        if gpu.memory_bandwidth_bytes_per_s is not None:
            assert 1e10 < gpu.memory_bandwidth_bytes_per_s < 1e13
            assert gpu.sources["memory_bandwidth_bytes_per_s"]
        if gpu.kind == "mig":
            assert gpu.parent_uuid
            assert gpu.parent_uuid not in {other.uuid for other in machine.gpus}
    ids = [gpu.uuid for gpu in machine.gpus if gpu.uuid]
    assert len(ids) == len(set(ids))
    assert driver_broken(machine) == (name in BROKEN)


@pytest.mark.parametrize("name", NAMES)
def test_shape_ignores_what_changes_by_itself(name):
    machine = observed(name)
    busy = tuple(msgspec.structs.replace(gpu, memory_free_bytes=0, holders=None, index=9) for gpu in machine.gpus)
    memory = msgspec.structs.replace(machine.memory, available_bytes=1)
    later = msgspec.structs.replace(
        machine,
        gpus=busy[::-1],
        memory=memory,
        observed_at="2030-01-01T00:00:00Z",
        findings=(),
        sources=(),
        name="other",
    )
    assert shape_hash(later) == machine.shape_hash
    if machine.gpus:
        fewer = msgspec.structs.replace(machine, gpus=machine.gpus[1:])
        assert shape_hash(fewer) != machine.shape_hash


@pytest.mark.parametrize("name", NAMES)
def test_recordings_say_where_they_come_from(name):
    assert read_recording(MACHINES / name).origin.startswith(("composed: ", "recorded"))
