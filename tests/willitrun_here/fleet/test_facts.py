from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from willitrun_here.fleet import facts
from willitrun_here.fleet.document import encode
from willitrun_here.fleet.facts import facts_hash, facts_of, gpu_keys, state_of, with_state
from willitrun_probe.machine import (
    Cpu,
    Disk,
    Engine,
    Finding,
    Gpu,
    Holder,
    Link,
    Machine,
    Memory,
    NumaNode,
    Pcie,
    ProductRate,
    Source,
)  # fmt: skip

# Fields that are replaced, hashed, part of the state, or kept on the machine on purpose.
TREATED = {
    Gpu: {"uuid", "parent_uuid", "pcie", "links", "memory_free_bytes", "throttle_reasons", "holders"},
    Cpu: {"numa_nodes", "product_rates"},
    Memory: {"available_bytes", "huge_pages_free_bytes"},
    Pcie: {"generation"},
    Disk: {"path", "free_bytes"},
    Link: {"peer"},
    NumaNode: {"memory_free_bytes"},
    ProductRate: set(),
}
LISTS = {
    Gpu: facts.GPU_FACTS, Cpu: facts.CPU_FACTS, Memory: facts.MEMORY_FACTS, Pcie: facts.PCIE_FACTS,
    Disk: facts.DISK_FACTS, Link: facts.LINK_FACTS, NumaNode: facts.NODE_FACTS,
    ProductRate: facts.PRODUCT_FACTS,
}  # fmt: skip


@pytest.mark.parametrize("kind", list(LISTS), ids=lambda kind: kind.__name__)
def test_every_field_of_the_probe_is_either_sent_or_withheld_on_purpose(kind):
    fields = {field.name for field in msgspec.structs.fields(kind)}
    assert set(LISTS[kind]) | TREATED[kind] == fields
    assert not set(LISTS[kind]) & TREATED[kind]


CANARIES = {
    "serial": "SN-CANARY-0042", "mac": "de:ad:be:ef:ca:fe", "ip": "203.0.113.77", "user": "canary-user",
    "path": "/home/canary-user/models/secret.gguf", "process": "canary-process --api-key hunter2",
    "uuid": "GPU-ca9a7111-0000-4000-8000-00000000cafe", "container": "canary-container",
}  # fmt: skip


def canary_machine():
    return Machine(
        name="host-1",
        observed_at="2026-11-21T22:10:00Z",
        kernel=f"6.1.0 (built by {CANARIES['user']}@{CANARIES['ip']})",
        gpus=(
            Gpu(
                vendor="nvidia", name="NVIDIA H100", uuid=CANARIES["uuid"], pci_address="0000:01:00.0",
                parent_uuid=CANARIES["uuid"], memory_total_bytes=80, memory_free_bytes=7,
                holders=(Holder(pid=4711, name=CANARIES["process"], bytes=5, container=CANARIES["container"]),),
                links=(Link(kind="nvlink", peer=CANARIES["uuid"]), Link(kind="pcie", peer=CANARIES["serial"])),
            ),
        ),
        disks=(Disk(path=CANARIES["path"], purpose="huggingface"),),
        engines=(
            Engine(name="llama.cpp", version="b7001", path=CANARIES["path"]),
            Engine(name="vllm", version=f"0.11 from {CANARIES['path']}"),
        ),
        sources=(Source(name="nvml", outcome="failed", seconds=0.1, reason=CANARIES["path"]),),
        findings=(
            Finding(code="x", subject=CANARIES["path"], reason=CANARIES["serial"], advice=CANARIES["user"]),
            Finding(code="y", subject="0000:01:00.0", reason=CANARIES["mac"]),
        ),
    )  # fmt: skip


@pytest.mark.parametrize("hostname", ["clear", "hash", "off"])
def test_no_canary_of_a_machine_is_in_its_report(hostname, make_report):
    machine = canary_machine()
    bodies = [msgspec.json.encode([facts_of(machine, hostname=hostname), state_of(machine)])]
    bodies.append(encode(make_report(machine, 1)))
    for body in bodies:
        text = body.decode()
        assert not [kind for kind, canary in CANARIES.items() if canary in text]
        assert "4711" not in text


def test_a_finding_keeps_its_code_and_a_subject_that_names_hardware():
    found = facts_of(canary_machine()).findings
    assert [(one.code, one.subject) for one in found] == [("x", "not sent"), ("y", "0000:01:00.0")]


def test_the_host_name_is_sent_hashed_or_left_out_as_asked():
    machine = canary_machine()
    assert facts_of(machine).name == "host-1"
    assert facts_of(machine, hostname="hash").name.startswith("h-")
    assert facts_of(machine, hostname="off").name == "unnamed"


def test_the_hash_ignores_what_changes_from_beat_to_beat_and_sees_what_does_not(make_machine):
    one = make_machine(free=20, ram_free=50, at=1000)
    other = make_machine(free=3, ram_free=7, at=2000)
    assert facts_hash(facts_of(one)) == facts_hash(facts_of(other))
    assert facts_hash(facts_of(one)) != facts_hash(facts_of(make_machine(driver="560.1")))
    assert facts_hash(facts_of(one)) != facts_hash(facts_of(make_machine(gpus=2)))


def test_facts_and_state_together_are_the_machine_the_planner_wants(make_machine):
    machine = make_machine(gpus=2, free=5)
    machine = replace(machine, gpus=(replace(machine.gpus[0], memory_free_bytes=1), machine.gpus[1]))
    again = with_state(facts_of(machine), state_of(machine), machine.observed_at)
    assert [gpu.memory_free_bytes for gpu in again.gpus] == [1, 5 * 1024**3]
    assert again.memory.available_bytes == machine.memory.available_bytes


def test_gpu_keys_are_unique_and_equal_before_and_after_reduction(make_machine):
    machine = make_machine(gpus=1)
    slices = tuple(
        replace(machine.gpus[0], kind="mig", uuid=uuid, parent_uuid="GPU-1") for uuid in ("MIG-1", "MIG-2", "MIG-2")
    )
    machine = replace(machine, gpus=(*machine.gpus, *slices, replace(machine.gpus[0], pci_address=None, uuid=None)))
    keys = gpu_keys(machine)
    assert len(set(keys)) == 5
    assert keys == gpu_keys(facts_of(machine))
    assert keys[0] == "0000:01:00.0"
    assert keys[4] == "#4"
