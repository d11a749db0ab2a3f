"""Whatever a vendor library, a driver or a file does: complete JSON with a finding, in time, and no child left."""

from __future__ import annotations

import os
import re
import shutil
import time
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

from willitrun_probe.collect import collect
from willitrun_probe.machine import Machine, from_json, to_json
from willitrun_probe.record import read_recording

MACHINES = Path(__file__).parents[1] / "machines"
SLACK_S = 2.0


class Fault(NamedTuple):
    """One thing that goes wrong on a recorded machine."""

    name: str
    machine: str
    lines: tuple[str, ...]
    """Added to the library's spec, or `=== …` sections added to the files."""
    codes: tuple[str, ...]
    """Findings of which at least one must appear."""
    usable: int
    """How many GPUs are still usable."""
    timeout_s: float = 10.0


FAULTS = tuple(
    Fault(name=name, **{key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()})
    for name, entry in tomllib.loads((Path(__file__).parent / "faults.toml").read_text("utf-8")).items()
)
FOUR, HEALED = "one-gpu-lost", "gpu2 nvmlDeviceGetHandleByIndex_v2 ="


def inject(fault: Fault, folder: Path) -> Path:
    """Copy the machine with the fault in it."""
    shutil.copytree(MACHINES / fault.machine, folder)
    for line in fault.lines:
        if line.startswith("==="):
            name = folder / "files.txt"
        else:
            name = folder / ("amdsmi.spec" if "amdsmi" in line else "nvml.spec")
        with name.open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(line if line.endswith("\n") else f"{line}\n")
    return folder


def probe(folder: Path, timeout_s: float, nvml: Path | None = None, amdsmi: Path | None = None) -> Machine:
    recording = read_recording(folder)
    environment = dict(recording.environment)
    libraries = recording.libraries
    if nvml is not None and libraries.nvml is not None and libraries.nvml.endswith(".spec"):
        environment |= {"WILLITRUN_FAKE_NVML": libraries.nvml, "PATH": os.environ["PATH"]}
        libraries = libraries._replace(nvml=str(nvml))
    if amdsmi is not None and libraries.amdsmi is not None and libraries.amdsmi.endswith(".spec"):
        environment |= {"WILLITRUN_FAKE_AMDSMI": libraries.amdsmi}
        libraries = libraries._replace(amdsmi=str(amdsmi))
    return collect(
        roots=recording.roots, libraries=libraries, environment=environment, timeout_s=timeout_s, now=recording.observed
    )


def check(fault: Fault, machine: Machine, seconds: float) -> None:
    assert seconds < fault.timeout_s + SLACK_S
    assert from_json(to_json(machine)) == machine
    codes = [found.code for found in machine.findings]
    assert set(fault.codes) & set(codes), machine.findings
    assert "reader-failed" not in codes, machine.findings
    assert sum(gpu.usable for gpu in machine.gpus) == fault.usable, machine.gpus
    assert all(gpu.name.isprintable() and gpu.name.strip() for gpu in machine.gpus)


def test_there_are_enough_faults():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 40


@pytest.mark.usefixtures("no_children_left")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_ends_in_a_finding(fault, tmp_path):
    folder = inject(fault, tmp_path / "machine")
    start_s = time.monotonic()
    machine = probe(folder, fault.timeout_s)
    check(fault, machine, time.monotonic() - start_s)


HARD = re.compile(r"HANG|SEGV|EXIT|!13|!25|!34|0xff|\\\\xff|x1b")


@pytest.mark.compiler
@pytest.mark.usefixtures("no_children_left")
@pytest.mark.parametrize(
    "fault", [fault for fault in FAULTS if HARD.search(" ".join(fault.lines))], ids=lambda fault: fault.name
)
def test_fault_of_a_real_library(fault, tmp_path, request):
    wanted = "fake_amdsmi" if any("amdsmi" in line for line in fault.lines) else "fake_nvml"
    library = request.getfixturevalue(wanted)
    folder = inject(fault, tmp_path / "machine")
    start_s = time.monotonic()
    machine = probe(folder, fault.timeout_s, **{wanted.removeprefix("fake_"): library})
    check(fault, machine, time.monotonic() - start_s)


@pytest.mark.compiler
def test_library_chatter_does_not_reach_the_answers(fake_nvml, tmp_path):
    fault = Fault("chatter", "rtx3090-shared", ('sys chatter = {"kind": "end"}',), (), 1)
    machine = probe(inject(fault, tmp_path / "machine"), 10.0, nvml=fake_nvml)
    assert [gpu.memory_free_bytes for gpu in machine.gpus] == [18_900_000_000]
    assert any(found.code == "library-chatter" for found in machine.findings)


@pytest.mark.compiler
def test_long_process_records_of_driver_535(fake_nvml, tmp_path):
    fault = Fault("long", "rtx3090-driver535", (), (), 1)
    machine = probe(inject(fault, tmp_path / "machine"), 10.0, nvml=fake_nvml)
    holders = machine.gpus[0].holders
    assert holders is not None
    assert [(one.pid, one.bytes) for one in holders] == [(4242, 6291456000), (4300, 100000000)]


def test_hang_of_one_gpu_keeps_the_memory_of_the_others(tmp_path):
    fault = Fault("hang", FOUR, (HEALED, "gpu2 nvmlDeviceGetMemoryInfo_v2 = HANG"), (), 3, 2.0)
    machine = probe(inject(fault, tmp_path / "machine"), fault.timeout_s)
    assert [gpu.memory_free_bytes is not None for gpu in machine.gpus] == [True, True, True, False]
    assert [gpu.pci_address for gpu in machine.gpus if not gpu.usable] == ["0000:30:00.0"]
