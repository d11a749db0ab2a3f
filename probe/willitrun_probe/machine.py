"""The one description of a machine: a frozen, versioned snapshot that survives a round trip through JSON.

Facts only. A field that could not be read is `None` and a `Finding` says why; it is never 0, "" or "N/A".
`sources` beside the fields says which interface answered: `nvml`, `sysfs`, `kfd`, `amdsmi`, `procfs`, `psutil`,
`data-sheet`, `micro-benchmark` or `given` (typed by the user).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

SCHEMA = "willitrun.machine/1"

Bytes = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Rate = Annotated[float, Meta(ge=0)]

Vendor = Literal["nvidia", "amd", "intel", "apple"]
GpuKind = Literal["gpu", "mig", "partition", "integrated"]
Outcome = Literal["answered", "absent", "failed"]


class Finding(Struct, frozen=True, kw_only=True):
    """Something that is wrong, missing or surprising, with what to do about it."""

    code: str
    """Stable, documented, kebab-case: `driver-mismatch`, `memory-unknown` …"""
    subject: str
    """What it is about: a PCI address, a GPU's name, a file, a source."""
    reason: str
    """What was seen, in one sentence."""
    advice: str = ""
    """What the user can type or do; empty when nothing can be done."""


class Source(Struct, frozen=True, kw_only=True):
    """One interface that was asked, and how that went."""

    name: str
    outcome: Outcome
    seconds: float
    reason: str = ""


class Holder(Struct, frozen=True, kw_only=True):
    """A process that holds memory of a GPU. `None` is unknown, not nothing."""

    pid: int | None = None
    name: str | None = None
    bytes: Bytes | None = None
    container: str | None = None


class Link(Struct, frozen=True, kw_only=True):
    """A connection of a GPU to another GPU or to the host."""

    kind: Literal["nvlink", "xgmi", "pcie", "unknown"]
    peer: str
    """UUID or PCI address of the other GPU, or `host`."""
    bytes_per_s: Rate | None = None
    """One direction, the sum over all lanes and parallel links."""
    peer_to_peer: bool | None = None
    topology: str | None = None
    """How far apart: `internal`, `single-switch`, `multi-switch`, `host-bridge`, `node`, `system`."""


class Pcie(Struct, frozen=True, kw_only=True):
    """The PCI Express link of a GPU now and at best (it drops to generation 1 at idle)."""

    generation: Count | None = None
    width: Count | None = None
    max_generation: Count | None = None
    max_width: Count | None = None
    bytes_per_s: Rate | None = None
    """One direction, at the best generation this slot reaches and the width in use."""


class Gpu(Struct, frozen=True, kw_only=True):
    """One device to plan on: a whole GPU, a MIG instance, an AMD partition or an integrated GPU."""

    vendor: Vendor
    name: str
    uuid: str | None = None
    pci_address: str | None = None
    pci_id: str | None = None
    """`vendor:device` in hexadecimal, as `10de:2204`."""
    kind: GpuKind = "gpu"
    index: Count | None = None
    """The vendor library's index. For display only: it is not stable between reboots."""
    memory_total_bytes: Bytes | None = None
    memory_free_bytes: Bytes | None = None
    memory_reserved_bytes: Bytes | None = None
    memory_bandwidth_bytes_per_s: Rate | None = None
    memory_bus_bits: Count | None = None
    memory_clock_hz: Rate | None = None
    unified: bool = False
    """The memory is the host's: what a process takes here is gone from RAM too."""
    compute_capability: str | None = None
    gfx_target: str | None = None
    multiprocessors: Count | None = None
    """Streaming multiprocessors (NVIDIA) or compute units (AMD)."""
    driver_version: str | None = None
    runtime_version: str | None = None
    """Highest CUDA version the driver supports, or the ROCm version."""
    visible: bool = True
    """False when an environment variable such as CUDA_VISIBLE_DEVICES hides it from engines."""
    usable: bool = True
    """False when it is present but its driver or permissions make it unusable; a Finding says why."""
    display_active: bool | None = None
    compute_mode: str | None = None
    virtualization: str | None = None
    parent_uuid: str | None = None
    """For a MIG instance or partition: the GPU it is a slice of."""
    numa_node: int | None = None
    pcie: Pcie | None = None
    power_limit_w: Rate | None = None
    power_default_w: Rate | None = None
    throttle_reasons: tuple[str, ...] = ()
    health: tuple[str, ...] = ()
    """Problems the driver itself reports: `ecc-uncorrected`, `row-remap-pending`, `row-remap-failed` …"""
    holders: tuple[Holder, ...] | None = None
    """None when the system does not say who holds memory."""
    links: tuple[Link, ...] = ()
    sources: dict[str, str] = {}


class NumaNode(Struct, frozen=True, kw_only=True):
    """A memory node of the host; nodes without CPUs are listed and never planned on."""

    node: Count
    cpus: Count
    memory_total_bytes: Bytes | None = None
    memory_free_bytes: Bytes | None = None


class ProductRate(Struct, frozen=True, kw_only=True):
    """What all usable threads together reach in matrix products with weights of one type."""

    weight_type: str
    decode_bytes_per_s: Rate
    """Weight bytes per second while one token is computed."""
    prefill_ops_per_s: Rate
    """Operations per second while a prompt is read, two per weight and token."""


class Cpu(Struct, frozen=True, kw_only=True):
    """The processor as this process may use it."""

    name: str | None = None
    architecture: str | None = None
    sockets: Count | None = None
    physical_cores: Count | None = None
    """Distinct physical cores inside the affinity mask."""
    logical_cpus: Count | None = None
    performance_cores: Count | None = None
    """On hybrid processors, the fast cores; None where all are alike."""
    quota_cpus: float | None = None
    """CPU time the control group allows, in cores; None without a limit."""
    usable_threads: Count | None = None
    """What an engine should be given: physical cores inside mask and quota, at least 1."""
    flags: tuple[str, ...] = ()
    """The instruction sets that matter for inference, as the kernel spells them."""
    numa_nodes: tuple[NumaNode, ...] = ()
    product_rates: tuple[ProductRate, ...] = ()
    """Measured by `calibrate` with the engine that is installed; empty otherwise."""
    block_s: float | None = None
    """Seconds that one transformer block takes beside reading its weights, measured likewise."""
    side_s: float | None = None
    """Seconds per row and column of a matrix and prompt token beside multiplying, measured likewise."""


class Memory(Struct, frozen=True, kw_only=True):
    """Host memory. `available_bytes` respects control groups and counts reclaimable cache."""

    total_bytes: Bytes | None = None
    available_bytes: Bytes | None = None
    limit_bytes: Bytes | None = None
    """The tightest control-group limit above this process, None without one."""
    bandwidth_bytes_per_s: Rate | None = None
    """Measured by `calibrate` or given; None otherwise (a data sheet cannot know the modules fitted)."""
    huge_pages_free_bytes: Bytes | None = None
    sources: dict[str, str] = {}


class Disk(Struct, frozen=True, kw_only=True):
    """The file system under one model folder."""

    path: str
    purpose: str
    """Whose folder it is: `huggingface`, `ollama`, `llama.cpp`, `home` …"""
    filesystem: str | None = None
    total_bytes: Bytes | None = None
    free_bytes: Bytes | None = None
    network: bool | None = None
    rotational: bool | None = None
    read_bytes_per_s: Rate | None = None
    """Measured by `calibrate` or given."""


class Engine(Struct, frozen=True, kw_only=True):
    """An inference engine installed here."""

    name: str
    """`llama.cpp`, `ollama`, `vllm`, `docker`."""
    version: str | None = None
    path: str | None = None
    backends: tuple[str, ...] = ()


class Machine(Struct, frozen=True, kw_only=True):
    """A machine as it was at one moment."""

    schema: str = SCHEMA
    name: str
    observed_at: str
    """UTC, ISO 8601 with a trailing Z."""
    shape_hash: str = ""
    """Equal for machines whose plans are equal; see `identity.shape_hash`."""
    os: str | None = None
    kernel: str | None = None
    virtualization: str | None = None
    gpus: tuple[Gpu, ...] = ()
    cpu: Cpu = Cpu()
    memory: Memory = Memory()
    disks: tuple[Disk, ...] = ()
    engines: tuple[Engine, ...] = ()
    sources: tuple[Source, ...] = ()
    findings: tuple[Finding, ...] = ()


def to_json(machine: Machine) -> bytes:
    """Encode a machine for a file or another program."""
    return msgspec.json.encode(machine)


def from_json(data: bytes | str) -> Machine:
    """Decode what `to_json` wrote; raises msgspec.ValidationError naming the path that is wrong."""
    return msgspec.json.decode(data, type=Machine)
