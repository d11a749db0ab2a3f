"""A local fact for Ansible: put into `/etc/ansible/facts.d/willitrun.fact`, it is `ansible_local.willitrun`.

Plain JSON in a file that is not executable
(https://docs.ansible.com/ansible/latest/playbook_guide/playbooks_vars_facts.html#facts-d-or-local-facts).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from willitrun_probe.machine import Machine


def local_fact(machine: Machine, *, runs: Mapping[str, str] | None = None) -> str:
    """Write the fact: the GPUs, memory and engines, and the quantization for each model that was asked for."""
    fact = {
        "schema": "willitrun.ansible/1",
        "gpus": [
            {
                "name": gpu.name,
                "vendor": gpu.vendor,
                "kind": gpu.kind,
                "pci_address": gpu.pci_address,
                "memory_total_bytes": gpu.memory_total_bytes,
                "driver_version": gpu.driver_version,
                "usable": gpu.usable,
            }
            for gpu in machine.gpus
        ],
        "ram_total_bytes": machine.memory.total_bytes,
        "physical_cores": machine.cpu.physical_cores,
        "engines": {engine.name: engine.version for engine in machine.engines},
        "findings": sorted({finding.code for finding in machine.findings}),
        "runs": dict(runs or {}),
        "shape_hash": machine.shape_hash,
    }
    return msgspec.json.format(msgspec.json.encode(fact), indent=2).decode() + "\n"
