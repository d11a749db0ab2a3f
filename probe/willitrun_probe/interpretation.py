"""What passes between the collector and the vendors: the surroundings of a GPU, and what was made of its answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from willitrun_probe.host.pci import PciDevice
from willitrun_probe.machine import Finding, Gpu, Memory, Source
from willitrun_probe.roots import Roots


class Host(NamedTuple):
    """What interpreting a GPU needs to know of the machine around it."""

    roots: Roots
    environment: Mapping[str, str]
    memory: Memory
    devices: tuple[PciDevice, ...]


class Interpretation(NamedTuple):
    """What a vendor's answers mean."""

    gpus: tuple[Gpu, ...] = ()
    findings: tuple[Finding, ...] = ()
    sources: tuple[Source, ...] = ()
