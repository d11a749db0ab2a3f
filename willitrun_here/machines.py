"""From `--machine SPEC` to a Machine: this box, a saved probe, a recording, words, or an object of a batch line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from willitrun_catalog.datasheet import Datasheet
from willitrun_here.errors import UnreadableError, UsageError
from willitrun_probe.machine import Cpu, Disk, Finding, Gpu, Machine, Memory, Vendor
from willitrun_probe.units import GIB, parse_bytes

if TYPE_CHECKING:
    from pathlib import Path

ASSUMED_RAM_BYTES = 64 * GIB
"""RAM of a described machine that names none; a finding says so."""
ASSUMED_CORES = 8
UNUSABLE_FRACTION = 0.015
"""What drivers and ECC keep of a card whose usable memory is not published (published ones: 1 to 3 %)."""
SAME_MEMORY = 0.1
"""A stated size that is off by more than a tenth is another variant."""
MOST_GPUS = 64
MOST_BYTES = 2**60
MOST_WORDS = 4096

VENDOR_WORDS: dict[Vendor, str] = {
    "amd": r"amd|radeon|instinct|firepro|rx|mi\d+\w*",
    "intel": "intel|arc|iris|xe",
    "apple": "apple",
}

# Patterns are compiled when words are read: most questions are about this machine.
_COUNT = r"(\d+)\s*[x\u00d7*]\s+|(\d+)\s*[x\u00d7]\s*(?=[A-Za-z])"
_RAM = r"(?i)(?:(?P<a>[\d.]+\s*[KMGT]i?B?)\s+(?:of\s+)?(?:RAM|memory)|RAM\s*:?\s*(?P<b>[\d.]+\s*[KMGT]i?B?))"
_CORES = r"(?i)(\d+)\s*(?:CPU\s+)?(?:cores?|threads?)"
_BANDWIDTH = r"(?i)([\d.]+\s*[MGT]B)/s(?:\s+RAM)?"
_FREE = r"(?i)\(\s*(?P<size>[\d.]+\s*[KMGT]i?B?)\s+free\s*\)"


class GpuWords(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of GPU in a description."""

    name: str
    count: int = 1
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    memory_bandwidth_bytes_per_s: float | None = None


class MachineWords(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine that is described instead of probed: the object form of `machine` in a batch line."""

    gpus: tuple[GpuWords, ...] = ()
    ram_bytes: int | None = None
    ram_total_bytes: int | None = None
    ram_bandwidth_bytes_per_s: float | None = None
    disk_read_bytes_per_s: float | None = None
    cpu: str | None = None
    cores: int | None = None
    name: str | None = None


def open_machine(spec: str, *, timeout_s: float = 20.0) -> Machine:
    """Return the machine a `--machine` option names. Raises UnreadableError, CatalogError or UsageError."""
    if spec == "here":
        return here(timeout_s=timeout_s)
    if not spec.strip():
        raise UsageError("--machine is empty", 'Write for example "RTX 3090, 64 GiB RAM".')
    from pathlib import Path  # noqa: PLC0415 - most questions are about this machine

    path = Path(spec)
    if len(spec) > MOST_WORDS or "\0" in spec:
        raise UsageError(f"--machine has {len(spec)} characters", f"At most {MOST_WORDS}, none of them NUL.")
    if is_folder(path):
        from willitrun_probe.record import open_recording  # noqa: PLC0415

        return open_recording(path)
    if path.suffix == ".json" or is_file(path):
        return saved(path)
    return described(parse_words(spec))


def is_folder(path: Path) -> bool:
    """Tell whether a folder is there; words can be too long for a file name, or a folder above it be closed."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Tell whether a file is there, as `is_folder` does."""
    try:
        return path.is_file()
    except OSError:
        return False


def here(*, timeout_s: float = 20.0) -> Machine:
    """Probe this machine and add what `calibrate` has measured on it."""
    from willitrun_here.calibrate.store import read, with_measurements  # noqa: PLC0415
    from willitrun_probe.collect import here as collect_here  # noqa: PLC0415

    machine = collect_here(timeout_s=timeout_s)
    return with_measurements(machine, read(machine.shape_hash))


def saved(path: Path) -> Machine:
    """Read a file that `probe --save` wrote."""
    from willitrun_probe.machine import from_json  # noqa: PLC0415

    try:
        return from_json(path.read_bytes())
    except OSError as error:
        raise UnreadableError(
            f"{path}: {error.strerror or error}", "Save one with: willitrun-here probe --save FILE"
        ) from None
    except msgspec.MsgspecError as error:
        raise UnreadableError(
            f"{path} is not a saved probe: {error}", "Save one with: willitrun-here probe --save FILE"
        ) from None


def parse_words(text: str) -> MachineWords:
    """Read words such as `2x NVIDIA GeForce RTX 3090, 64 GiB RAM, 16 cores`.

    Parts are separated by commas or plus signs; a part is RAM, cores, a RAM bandwidth, or a GPU with an optional
    count before it and `(20 GiB free)` behind it.
    """
    try:
        return read_parts(text)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"--machine {text!r}: {error}", 'Write for example "RTX 3090, 64 GiB RAM".') from None


def read_parts(text: str) -> MachineWords:
    """Read the parts of a description; raises ValueError for a number that is none."""
    gpus: list[GpuWords] = []
    ram: int | None = None
    cores: int | None = None
    bandwidth: float | None = None
    for raw in re.split(r"[,;]|\s\+\s", text):
        part = raw.strip()
        if not part:
            continue
        if match := re.fullmatch(_RAM, part):
            ram = parse_bytes(match["a"] or match["b"])
        elif match := re.fullmatch(_CORES, part):
            cores = int(match[1])
        elif match := re.fullmatch(_BANDWIDTH, part):
            bandwidth = float(parse_bytes(match[1]))
        elif part.lower() not in {"no gpu", "cpu only", "cpu"}:
            gpus.append(gpu_words(part))
    if not gpus and ram is None and cores is None and not re.search(r"no gpu|cpu", text, re.IGNORECASE):
        raise UsageError(f"--machine {text!r} names no GPU and no RAM", 'Write for example "RTX 3090, 64 GiB RAM".')
    return MachineWords(gpus=tuple(gpus), ram_bytes=ram, cores=cores, ram_bandwidth_bytes_per_s=bandwidth, name=text)


def gpu_words(part: str) -> GpuWords:
    """Read one GPU part: a count, a name, free memory."""
    free = re.search(_FREE, part)
    name = re.sub(_FREE, "", part).strip()
    count = 1
    if match := re.match(_COUNT, name):
        count, name = int(match[1] or match[2]), name[match.end() :].strip()
    return GpuWords(name=name, count=count, memory_free_bytes=parse_bytes(free["size"]) if free else None)


def from_object(value: Mapping[str, Any]) -> Machine:
    """Build a machine from the object form; raises UsageError naming the field that is wrong."""
    try:
        return described(msgspec.convert(value, MachineWords))
    except msgspec.ValidationError as error:
        raise UsageError(f"machine: {error}", "See docs/batch.md for the fields.") from None


def described(words: MachineWords) -> Machine:
    """Build a machine from words and data sheets. Raises CatalogError for a GPU nobody knows."""
    check_numbers(words)
    gpus: list[Gpu] = []
    for kind in words.gpus:
        if not 1 <= kind.count <= MOST_GPUS:
            raise UsageError(f"{kind.count} GPUs of one kind in a machine", f"Give 1 to {MOST_GPUS}.")
        sheet = known_sheet(kind)
        count = kind.count * (1 if sheet is None else sheet.dies)
        if len(gpus) + count > MOST_GPUS:
            raise UsageError(f"more than {MOST_GPUS} GPUs in a machine", f"Give 1 to {MOST_GPUS}.")
        gpus += [given_gpu(kind, sheet, len(gpus) + i) for i in range(count)]
    findings = []
    ram = words.ram_bytes
    if ram is None:
        ram = ASSUMED_RAM_BYTES
        findings.append(
            Finding(
                code="ram-assumed",
                subject="memory",
                reason=f"no RAM was given; {ASSUMED_RAM_BYTES // GIB} GiB are assumed",
                advice='Add it to the description: "…, 64 GiB RAM".',
            )
        )
    rate = words.ram_bandwidth_bytes_per_s
    return Machine(
        name=words.name or name_of(words, ram),
        observed_at="1970-01-01T00:00:00Z",
        gpus=tuple(gpus),
        cpu=Cpu(
            name=words.cpu, physical_cores=words.cores or ASSUMED_CORES, usable_threads=words.cores or ASSUMED_CORES
        ),
        memory=Memory(
            total_bytes=words.ram_total_bytes or ram,
            available_bytes=ram,
            bandwidth_bytes_per_s=rate,
            sources={} if rate is None else {"bandwidth_bytes_per_s": "given"},
        ),
        disks=disks_of(words),
        findings=tuple(findings),
    )


def disks_of(words: MachineWords) -> tuple[Disk, ...]:
    """Return the disk whose rate was given."""
    if words.disk_read_bytes_per_s is None:
        return ()
    return (Disk(path="/", purpose="models", read_bytes_per_s=words.disk_read_bytes_per_s),)


def check_numbers(words: MachineWords) -> None:
    """Refuse sizes below 0, rates that are not above 0 and numbers beyond any machine; raises UsageError."""
    sizes = [("ram_bytes", words.ram_bytes), ("ram_total_bytes", words.ram_total_bytes), ("cores", words.cores)]
    rates = [
        ("ram_bandwidth_bytes_per_s", words.ram_bandwidth_bytes_per_s),
        ("disk_read_bytes_per_s", words.disk_read_bytes_per_s),
    ]
    for gpu in words.gpus:
        sizes += [("memory_total_bytes", gpu.memory_total_bytes), ("memory_free_bytes", gpu.memory_free_bytes)]
        rates.append(("memory_bandwidth_bytes_per_s", gpu.memory_bandwidth_bytes_per_s))
    for name, size in sizes:
        if size is not None and not 0 <= size <= MOST_BYTES:
            raise UsageError(f"machine: {name} {size} is not between 0 and {MOST_BYTES}")
    for name, rate in rates:
        if rate is not None and not 0 < rate <= MOST_BYTES:
            raise UsageError(f"machine: {name} {rate} is not above 0 and at most {MOST_BYTES}")


def name_of(words: MachineWords, ram: int) -> str:
    """Return the name of a machine described by an object."""
    parts = [f"{gpu.count}x {gpu.name}" if gpu.count > 1 else gpu.name for gpu in words.gpus]
    return ", ".join([*parts, f"{ram / GIB:.0f} GiB RAM"])


def given_gpu(words: GpuWords, sheet: Datasheet | None, index: int) -> Gpu:
    """Build one GPU from its data sheet and what was given about it; memory that was given is that of each GPU."""
    total = words.memory_total_bytes
    if total is None and sheet is not None:
        total = sheet.memory_usable_bytes
        from willitrun_catalog.find_gpu import memory_in  # noqa: PLC0415 - with a sheet, the search is loaded

        stated = memory_in(words.name)
        if stated is not None and sheet.memory_bytes is not None and abs(stated / sheet.memory_bytes - 1) > SAME_MEMORY:
            # A variant that the catalog lacks: the sheet's chip with the memory that was named.
            total = int(stated * (1 - UNUSABLE_FRACTION))
        if total is None and sheet.memory_bytes is not None:
            total = int(sheet.memory_bytes * (1 - UNUSABLE_FRACTION))
        total = None if total is None else total // sheet.dies
    free = words.memory_free_bytes if words.memory_free_bytes is not None else total
    if total is None or (free is not None and free > total):
        total = free
    bandwidth = words.memory_bandwidth_bytes_per_s
    return Gpu(
        vendor=sheet.vendor if sheet else vendor_of(words.name),  # type: ignore[arg-type]  # the catalog's vendors are these
        name=words.name if sheet is None else sheet.name,
        kind="integrated" if sheet is not None and sheet.unified and sheet.vendor != "apple" else "gpu",
        index=index,
        memory_total_bytes=total,
        memory_free_bytes=free,
        memory_bandwidth_bytes_per_s=bandwidth,
        compute_capability=sheet.compute_capability if sheet else None,
        gfx_target=sheet.gfx_target if sheet else None,
        multiprocessors=sheet.multiprocessors // sheet.dies if sheet and sheet.multiprocessors else None,
        unified=sheet.unified if sheet else False,
        sources={"memory_total_bytes": "given" if words.memory_total_bytes else "data-sheet"},
    )


def vendor_of(name: str) -> Vendor:
    """Return the maker that a name without a data sheet tells; NVIDIA where it tells none."""
    for vendor, signs in VENDOR_WORDS.items():
        if re.search(rf"\b(?:{signs})\b", name, re.IGNORECASE):
            return vendor
    return "nvidia"


def known_sheet(words: GpuWords) -> Datasheet | None:
    """Find the data sheet; a GPU with given memory may be one that no catalog knows."""
    from willitrun_catalog.errors import UnknownGpu  # noqa: PLC0415
    from willitrun_catalog.find import find_datasheet  # noqa: PLC0415

    try:
        return find_datasheet(words.name, memory_bytes=words.memory_total_bytes)
    except UnknownGpu:
        if words.memory_total_bytes is None and words.memory_free_bytes is None:
            raise
        return None
