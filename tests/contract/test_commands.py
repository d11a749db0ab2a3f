"""`probe`, `doctor` and `record` as people and scripts use them: output, files and exit codes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

from willitrun_here.__main__ import main
from willitrun_probe.machine import from_json

MACHINES = Path(__file__).parents[1] / "machines"
MAIN = "import sys; from willitrun_here.__main__ import main; sys.exit(main(sys.argv[1:]))"


class Done(NamedTuple):
    """What a command said, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str, **environment: str) -> Done:
    """Run the command line in this process, with streams of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WILLITRUN_")}
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with (
        mock.patch.dict(os.environ, {**kept, **environment}, clear=True),
        mock.patch.object(sys, "stdout", out),
        mock.patch.object(sys, "stderr", err),
    ):
        code = main(list(arguments))
    return Done(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))


def test_probe_prints_json_alone_on_stdout():
    done = run("probe", "--json")
    assert done.returncode in {0, 3}
    assert done.stderr == ""
    machine = from_json(done.stdout)
    assert machine.schema == "willitrun.machine/1"
    assert {source.name for source in machine.sources} >= {"pci", "cpu", "memory", "storage"}
    assert all(source.seconds >= 0 for source in machine.sources)


def test_probe_in_text_names_the_sources():
    done = run("probe")
    assert done.returncode in {0, 3}
    for word in ("CPU", "RAM", "source", "storage"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("rtx3090-shared", 0),
        ("driver-mismatch", 3),
        ("nouveau", 3),
        ("desktop-cpu-only", 0),
        ("container-without-gpus", 0),
        ("container-without-utility", 3),
        ("vfio-passthrough", 0),
        ("nothing", 0),
    ],
)
def test_exit_code_of_replayed_machines(name, code):
    done = run("probe", "--json", "--machine", str(MACHINES / name))
    assert done.returncode == code, done.stderr
    expected = json.loads((MACHINES / name / "expected.json").read_text())
    assert json.loads(done.stdout)["shape_hash"] == expected["shape_hash"]


def test_saved_probe_can_be_shown_again(tmp_path):
    saved = tmp_path / "machine.json"
    first = run("probe", "--machine", str(MACHINES / "mi100"), "--save", str(saved), "--format", "json")
    again = run("probe", "--json", "--machine", str(saved))
    assert first.stdout == again.stdout
    assert "Instinct MI100" in run("probe", "--machine", str(saved)).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--machine", "/nonexistent/x.json"), 4, "No such file"),
        (("--machine", str(MACHINES)), 4, "no readable recording"),
        (("--machine", __file__), 4, "not a saved probe"),
        (("--root", "/nonexistent"), 4, "not a folder"),
        (("--root", "/", "--machine", "x"), 2, "contradict"),
        (("--timeout", "0"), 2, "timeout"),
        (("--timeout", "nan"), 2, "timeout"),
        (("--save", "/proc/nowhere/x.json"), 4, "cannot be written"),
        (("--nonsense",), 2, "nonsense"),
    ],
)
def test_bad_input(arguments, code, said):
    done = run("probe", "--json", *arguments)
    assert done.returncode == code, done
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_another_root_is_read_instead(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 1048576 kB\nMemAvailable: 524288 kB\n")
    machine = json.loads(run("probe", "--json", "--root", str(tmp_path)).stdout)
    assert machine["memory"]["available_bytes"] == 512 * 1024**2
    assert machine["cpu"]["name"] is None


def test_libraries_of_this_system_are_not_asked_about_another_root(tmp_path):
    device = tmp_path / "sys" / "bus" / "pci" / "devices" / "0000:01:00.0"
    device.mkdir(parents=True)
    for name, text in (("vendor", "0x10de"), ("device", "0x2204"), ("class", "0x030000")):
        (device / name).write_text(f"{text}\n")
    (device / "driver").symlink_to("../../../bus/pci/drivers/nvidia")
    done = run("probe", "--json", "--root", str(tmp_path))
    assert done.returncode == 3
    assert [gpu["pci_id"] for gpu in json.loads(done.stdout)["gpus"]] == ["10de:2204"]
    assert "library-missing" in done.stdout
    spec = str(MACHINES / "rtx3090-shared" / "nvml.spec")
    injected = json.loads(run("probe", "--json", "--root", str(tmp_path), WILLITRUN_NVML=spec).stdout)
    assert [gpu["name"] for gpu in injected["gpus"]] == ["NVIDIA GeForce RTX 3090"]


@pytest.mark.parametrize("home", [None, "", "/proc/nowhere", "relative"])
def test_home_does_not_matter(home):
    environment = {} if home is None else {"HOME": home}
    kept = {k: v for k, v in os.environ.items() if k != "HOME"}
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "probe", "--json"], capture_output=True, env={**kept, **environment}, check=False
    )
    assert done.returncode in {0, 3}
    assert json.loads(done.stdout)["schema"] == "willitrun.machine/1"


def test_closed_pipe_ends_quietly():
    done = subprocess.run(
        f'"{sys.executable}" -c "{MAIN}" probe | head -c 1 > /dev/null', shell=True, capture_output=True, check=False
    )
    assert done.stderr == b""


def test_injected_library_by_the_environment():
    spec = str(MACHINES / "rtx3090-shared" / "nvml.spec")
    done = run("probe", "--json", WILLITRUN_NVML=spec)
    gpu = next(gpu for gpu in json.loads(done.stdout)["gpus"] if gpu["name"] == "NVIDIA GeForce RTX 3090")
    assert gpu["memory_free_bytes"] == 18_900_000_000


def test_missing_injected_library_is_said(tmp_path):
    done = run("doctor", WILLITRUN_NVML=str(tmp_path / "none.so"))
    assert "none.so" in done.stdout


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("driver-mismatch", "Reboot"),
        ("nouveau", "Install and load"),
        ("rx7900xtx-no-render", "usermod -aG render,video"),
        ("mig-without-instances", "nvidia-smi mig -cgi"),
        ("container-unknown-error", "Restart the container"),
        ("rx6800-smi-mismatch", "pip install"),
        ("mixed-visible-index", "CUDA_DEVICE_ORDER=PCI_BUS_ID"),
        ("amd-vulkan-only", "--device /dev/kfd"),
    ],
)
def test_doctor_says_what_to_type(name, typed):
    done = run("doctor", "--machine", str(MACHINES / name), COLUMNS="400")
    assert typed in done.stdout


def test_doctor_as_json_puts_what_is_broken_first():
    done = run("doctor", "--json", "--machine", str(MACHINES / "one-gpu-lost"))
    diagnosis = json.loads(done.stdout)
    assert done.returncode == 3
    assert (diagnosis["gpus_usable"], diagnosis["gpus_present"]) == (3, 4)
    assert diagnosis["problems"][0]["code"] == "gpu-lost"
    assert diagnosis["problems"][0]["severity"] == "broken"
    assert "NVIDIA" in diagnosis["problems"][0]["device"]


def test_doctor_on_a_healthy_machine():
    assert "Nothing is wrong" in run("doctor", "--machine", str(MACHINES / "desktop-cpu-only")).stdout


def test_record_then_replay(tmp_path):
    folder = tmp_path / "recording"
    done = run("record", str(folder), WILLITRUN_NVML=str(MACHINES / "a100-mig" / "nvml.spec"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    replayed = json.loads(run("probe", "--json", "--machine", str(folder)).stdout)
    assert [gpu["kind"] for gpu in replayed["gpus"]].count("mig") == 3
    assert run("record", str(folder)).returncode == 4


@pytest.mark.compiler
def test_record_of_a_real_library_is_the_replay_of_its_spec(fake_nvml, tmp_path):
    spec = MACHINES / "v100x4-nvlink-sick" / "nvml.spec"
    folder = tmp_path / "recording"
    done = run("record", str(folder), "--keep-ids", WILLITRUN_NVML=str(fake_nvml), WILLITRUN_FAKE_NVML=str(spec))
    assert done.returncode == 0, done.stderr
    ours = json.loads(run("probe", "--json", "--machine", str(folder)).stdout)["gpus"]
    theirs = json.loads(run("probe", "--json", WILLITRUN_NVML=str(spec)).stdout)["gpus"]
    assert [gpu for gpu in ours if gpu["vendor"] == "nvidia"] == [gpu for gpu in theirs if gpu["vendor"] == "nvidia"]
