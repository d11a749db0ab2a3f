"""Record this machine: everything the probe read, redacted, in the form that `record` replays.

Left out or replaced unless ids are to be kept: host name, user name and home folder, UUIDs, serial and container
numbers, process ids and names, mounts that say nothing about models or limits, every other environment variable.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from willitrun_probe.collect import collect
from willitrun_probe.errors import ProbeError
from willitrun_probe.gpus.smi import FITTING
from willitrun_probe.gpus.spec import Libraries, write_line
from willitrun_probe.isolate import Reply
from willitrun_probe.machine import Machine
from willitrun_probe.record import SCHEMA, write_files
from willitrun_probe.redaction import Redaction
from willitrun_probe.roots import Roots

KEPT_VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES",
    "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "HSA_OVERRIDE_GFX_VERSION", "HOME",
    "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "OLLAMA_MODELS", "LLAMA_CACHE",
)  # fmt: skip
_QUIET_LISTINGS = ("/sys/fs/cgroup", "/proc/")


def record(
    folder: str,
    *,
    roots: Roots,
    libraries: Libraries,
    environment: Mapping[str, str],
    timeout_s: float,
    now: float,
    keep_ids: bool = False,
) -> Machine:
    """Write a recording of a machine into a new or empty folder and return the machine; raises ProbeError."""
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise ProbeError(f"{target} is not empty", "Name a new folder.")
    except OSError as error:
        raise ProbeError(f"{target} cannot be used: {error.strerror}", "Name a folder that can be made.") from None
    transcript: dict[str, Reply] = {}
    machine = collect(
        roots=roots,
        libraries=libraries,
        environment=environment,
        timeout_s=timeout_s,
        now=now,
        transcript=transcript,
    )
    files = {path: data.decode("utf-8", "surrogateescape") for path, data in roots.seen.items()}
    links, failures, names = dict(roots.seen_links), dict(roots.unreadable), set(roots.seen_names)
    for reply in transcript.values():
        for line in reply.lines:
            if line.get("kind") == "files":
                files |= line["files"]
                links |= line["links"]
                failures |= line["failures"]
                names.update(line["names"])
    files |= {name: "" for name in _bare_names(names, {*files, *links, *failures}) if name not in files}
    redaction = None if keep_ids else Redaction(environment)
    clean: Callable[[str], str] = redaction or str
    ids = {gpu.pci_id for gpu in machine.gpus if gpu.pci_id}
    files = {path: _named(text, ids) if path.endswith("/pci.ids") else text for path, text in files.items()}
    if redaction is not None:
        files = redaction.files(files)
    variables = {name: environment[name] for name in KEPT_VARIABLES if name in environment}
    facts = {
        "schema": SCHEMA,
        "origin": "recorded on the machine",
        "observed": int(now),
        "architecture": roots.architecture,
        "system": roots.system,
        "environment": {name: clean(value) for name, value in variables.items()},
        "space": {clean(path): list(space) for path, space in roots.seen_space.items()},
        "access": roots.seen_access,
    }
    parts = {
        "recording.json": json.dumps(facts, indent=1, sort_keys=True) + "\n",
        "files.txt": write_files(
            {clean(path): clean(text) for path, text in files.items()},
            {clean(path): clean(to) for path, to in links.items()},
            failures,
        ),
        "nvml.spec": "".join(f"{clean(line)}\n" for line in _nvml_lines(transcript.get("nvidia"), keep_ids=keep_ids)),
        "amdsmi.spec": "".join(f"{clean(line)}\n" for line in _smi_lines(transcript.get("amd"), keep_ids=keep_ids)),
    }
    for name, text in parts.items():
        if text:
            (target / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    return machine


def _bare_names(names: Iterable[str], known: set[str]) -> list[str]:
    """Return paths that were only seen, without folders (their contents tell of them) and system listings."""
    folders: set[str] = set()
    for path in known:
        parent = path.rpartition("/")[0]
        while parent and parent not in folders:
            folders.add(parent)
            parent = parent.rpartition("/")[0]
    quiet = [name for name in names if not name.startswith(_QUIET_LISTINGS)]
    return sorted(name for name in quiet if name not in known and name not in folders)


def _named(names: str, ids: set[str]) -> str:
    """Cut the list of PCI names down to the devices of this machine."""
    kept = ["\n"]
    for pci_id in sorted(ids):
        vendor, _, device = pci_id.partition(":")
        start = names.find(f"\n{vendor}  ") + 1
        place = names.find(f"\n\t{device}  ", start) + 1 if start else 0
        if place:
            kept += [names[start : names.find("\n", start) + 1], names[place : names.find("\n", place) + 1]]
    return "".join(kept)


def _nvml_lines(reply: Reply | None, *, keep_ids: bool) -> Iterable[str]:
    """Write NVML's answers as a spec; a call that was never reached has no line."""
    for line in reply.lines if reply else ():
        if line.get("kind") == "library":
            if line["start"]:
                yield write_line("sys", "nvmlInitWithFlags", line["start"])
                return
            yield write_line("sys", "nvmlDeviceGetCount_v2", line["count"])
            for key, answer in line["answers"].items():
                yield write_line("sys", key, answer)
        elif line.get("kind") == "device":
            target = f"gpu{line['device']}"
            if line["open"]:
                yield write_line(target, "nvmlDeviceGetHandleByIndex_v2", line["open"])
            yield from _answers(target, line["answers"], keep_ids=keep_ids)
            for part in line["slices"]:
                yield from _answers(f"{target}/mig{part['slot']}", part["answers"], keep_ids=keep_ids)
        elif line.get("kind") == "pairs":
            for target, answers in line["answers"].items():
                yield from _answers(target, answers, keep_ids=keep_ids)


def _answers(target: str, answers: Mapping[str, Any], *, keep_ids: bool) -> Iterable[str]:
    for key, answer in answers.items():
        told = answer
        if not keep_ids and "RunningProcesses" in key and isinstance(answer, list):
            told = [value if place % 4 else 1000 + place // 4 for place, value in enumerate(answer)]
        yield write_line(target, key, told)


def _smi_lines(reply: Reply | None, *, keep_ids: bool) -> Iterable[str]:
    """Write AMD SMI's answers as a spec, only where the library had been started."""
    lines = [line for line in reply.lines if line.get("kind") in {"smi", "smi-device"}] if reply else []
    state = next((line for line in lines if line["kind"] == "smi"), None)
    if state is None or state["state"] == "absent":
        return
    yield write_line("sys", "amdsmi_get_lib_version", state.get("library") or -1)
    bindings = str(state.get("bindings", ""))
    yield write_line("sys", "bindings", [bindings if ".".join(bindings.split(".")[:2]) in FITTING else bindings or "0"])
    if state["state"] == "failed":
        yield write_line("sys", "amdsmi_init", state.get("code") or -1)
    yield write_line("sys", "gpu_count", [len(lines) - 1])
    for line in lines:
        for key, answer in line.get("answers", {}).items():
            told = answer
            if not keep_ids and isinstance(answer, list):
                told = _without_ids(key, answer)
            yield write_line(f"gpu{line['index']}", key, told)


def _without_ids(key: str, answer: list[Any]) -> list[Any]:
    if key == "amdsmi_get_gpu_process_list":
        processes = range(0, len(answer) - 3, 4)
        return [value for i in processes for value in (1000 + i // 4, "", answer[i + 2], answer[i + 3])]
    if key == "amdsmi_get_gpu_asic_info" and len(answer) > 6:  # noqa: PLR2004 - the serial's place
        return [*answer[:6], "0", *answer[7:]]
    return answer
