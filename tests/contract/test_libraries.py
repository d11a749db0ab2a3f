"""The unmodified bindings on the compiled fakes say what a replay of the same spec says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from willitrun_probe.gpus.spec import Answer
from willitrun_probe.isolate import ask

MACHINES = Path(__file__).parents[1] / "machines"
NVIDIA = sorted(path.parent.name for path in MACHINES.glob("*/nvml.spec"))
AMD = sorted(path.parent.name for path in MACHINES.glob("*/amdsmi.spec"))

pytestmark = pytest.mark.compiler


def lines(vendor: str, library: str | Path, spec: Path) -> list[dict[str, object]]:
    environment = {**os.environ, "WILLITRUN_FAKE_NVML": str(spec), "WILLITRUN_FAKE_AMDSMI": str(spec)}
    arguments = {"vendor": vendor, "library": str(library), "root": "/nowhere"}
    reply = ask(arguments, timeout_s=20, environment=environment)
    assert reply.ending == "complete", reply
    return reply.lines


def told(answer: Answer) -> Answer:
    """Leave the error codes alone and drop the size of integers that C cuts to 32 or 64 bits."""
    if isinstance(answer, int):
        return answer
    return [value % 2**64 if isinstance(value, int) else value for value in answer]


@pytest.mark.parametrize("name", NVIDIA)
def test_nvml_through_the_bindings(name, fake_nvml):
    spec = MACHINES / name / "nvml.spec"
    bound, replayed = (lines("nvidia", library, spec) for library in (fake_nvml, spec))
    assert [line["kind"] for line in bound] == [line["kind"] for line in replayed]
    for one, other in zip(bound, replayed, strict=True):
        for key in ("start", "count", "open", "device"):
            assert one.get(key) == other.get(key)
        if one["kind"] == "device":
            assert {k: told(v) for k, v in one["answers"].items()} == {k: told(v) for k, v in other["answers"].items()}
            assert one["slices"] == other["slices"]
        else:
            assert one.get("answers") == other.get("answers")


@pytest.mark.parametrize("name", AMD)
def test_amdsmi_through_the_bindings(name, fake_amdsmi):
    spec = MACHINES / name / "amdsmi.spec"
    bound, replayed = (lines("amd", library, spec) for library in (fake_amdsmi, spec))
    assert [line["kind"] for line in bound] == [line["kind"] for line in replayed]
    for one, other in zip(bound, replayed, strict=True):
        assert one.get("state") == other.get("state")
        if one["kind"] == "smi-device":
            for key, answer in other["answers"].items():
                assert numbers(key, one["answers"][key]) == numbers(key, answer), key


def numbers(key: str, answer: Answer) -> Answer:
    """The bindings turn all-ones of several widths into "N/A" and pad the serial number."""
    if isinstance(answer, int):
        return answer
    absent = {2**32 - 1, 2**64 - 1, -1}
    kept = ["absent" if value in absent else value for value in answer]
    return kept[:6] + kept[7:] if key == "amdsmi_get_gpu_asic_info" else kept
