"""The stable codes of findings: what each means and what to do. docs/findings.md is written from this table.

`python -m willitrun_probe.findings` prints that page.
"""

from __future__ import annotations

from typing import NamedTuple

from willitrun_probe.machine import Finding, Machine


class Code(NamedTuple):
    """One kind of finding."""

    meaning: str
    advice: str
    broken: bool = False
    """A device is present and its driver unusable: `probe` then ends with exit code 3."""


CODES: dict[str, Code] = {
    # the driver of a device that is there
    "driver-missing": Code(
        "A GPU is on the PCI bus and no driver of its vendor is bound to it.",
        "Install and load the vendor's driver (`lspci -k` shows which driver has the device).",
        broken=True,
    ),
    "driver-not-loaded": Code(
        "The vendor's library is installed, its kernel driver is not loaded (NVML error 9, AMD SMI status 34).",
        "Load the driver (`sudo modprobe nvidia` or `sudo modprobe amdgpu`) and see `dmesg` if that fails.",
        broken=True,
    ),
    "driver-mismatch": Code(
        "Library and kernel driver are of different versions (NVML error 18), as after an update without a reboot.",
        "Reboot, or unload and load the nvidia kernel modules.",
        broken=True,
    ),
    "driver-no-permission": Code(
        "The vendor's library answers that this user may not use the driver.",
        "Check the permissions of /dev/nvidia* or /dev/kfd and /dev/dri/renderD*.",
        broken=True,
    ),
    "driver-unknown-error": Code(
        "The vendor's library cannot start and does not say why (NVML error 999); in a container this happens "
        "after a `systemctl daemon-reload` on the host.",
        "Restart the container; outside of one, see `dmesg` for Xid messages.",
        broken=True,
    ),
    "driver-failed": Code(
        "The vendor's library answers an error when it starts.",
        "See `dmesg`; reinstall the driver if a reboot does not help.",
        broken=True,
    ),
    "driver-hangs": Code(
        "The vendor's library or driver did not answer in time.",
        "See `dmesg` for Xid or amdgpu messages; try `--timeout 60` after a cold start; enable nvidia-persistenced.",
        broken=True,
    ),
    "driver-crashes": Code(
        "The vendor's library crashed or ended the process that asked it.",
        "Reinstall the driver's user-space library; report it with `willitrun-here record DIR`.",
        broken=True,
    ),
    "library-missing": Code(
        "A GPU and its driver are there, the vendor's library is not found (NVML error 12).",
        "Install the driver's libraries; in a container start it with `--gpus all` and "
        "`NVIDIA_DRIVER_CAPABILITIES=compute,utility`.",
        broken=True,
    ),
    "library-incompatible": Code(
        "The vendor's Python bindings and library do not fit together, so their answers are not used.",
        "Install the version of the bindings that matches the driver.",
    ),
    "bindings-missing": Code(
        "The vendor's Python bindings are not installed, so less is known about its GPUs.",
        'Install them: `pip install "willitrun-here[amd]"`.',
    ),
    "library-chatter": Code("The vendor's library printed messages while it was asked.", ""),
    "driver-without-compute": Code(
        "A GPU has a driver that only shows pictures, or none where none is needed.",
        "",
    ),
    "passed-through": Code(
        "A GPU is bound to a pass-through driver (vfio-pci, xen-pciback) and belongs to a virtual machine.",
        "Nothing to do, unless this machine should use it.",
    ),
    # single devices
    "gpu-lost": Code(
        "A GPU has fallen off the bus or answers that it is lost (NVML error 15).",
        "Reboot; if it happens again check power cables, cooling and the slot.",
        broken=True,
    ),
    "gpu-forbidden": Code(
        "A GPU is there and this process may not use it (device control group, container without the device).",
        "Pass the device to the container or job: `docker run --gpus all`, or `--device /dev/kfd --device /dev/dri`.",
    ),
    "gpu-failed": Code(
        "A GPU answers an error instead of a handle.",
        "See `dmesg`; reboot.",
        broken=True,
    ),
    "gpu-hangs": Code(
        "A GPU did not answer in time; the others did.",
        "See `dmesg` for Xid messages; reset or replace the GPU.",
        broken=True,
    ),
    "gpu-crashes": Code(
        "The vendor's library crashed while it was asked about this GPU; the others are known.",
        "See `dmesg`; report it with `willitrun-here record DIR`.",
        broken=True,
    ),
    "gpu-half-removed": Code(
        "A GPU is listed by one interface and unknown to another.",
        "Rescan the bus or reboot.",
        broken=True,
    ),
    "gpu-suspended": Code("A GPU is asleep (runtime power management); reading it woke it or was left out.", ""),
    "gpu-unhealthy": Code(
        "The driver reports damaged memory or a pending repair.",
        "Reset the GPU or reboot to let pending repairs happen; replace it when the repair failed.",
    ),
    "gpu-throttled": Code(
        "The GPU is slowed down by heat, power or a hardware signal right now.",
        "Check cooling and power supply.",
    ),
    "power-capped": Code(
        "The power limit is below the default, so long prompts are read more slowly.",
        "Raise it with `nvidia-smi -pl WATTS` or `amd-smi set --power-cap`, if the cap is not wanted.",
    ),
    "pcie-narrow": Code(
        "The PCI Express slot gives fewer lanes or a lower generation than the GPU could use.",
        "Use another slot; check risers and the firmware's lane settings.",
    ),
    "nvlink-inactive": Code(
        "Some NVLinks of a GPU are down while others are up.",
        "Check bridges and `nvidia-smi nvlink -s`; a fabric manager must run on systems with NVSwitch.",
    ),
    "compute-exclusive": Code(
        "The GPU takes one compute process only, and one is using it.",
        "Stop that process, or `sudo nvidia-smi -c DEFAULT`.",
    ),
    "compute-prohibited": Code(
        "The GPU's compute mode forbids every compute process.",
        "`sudo nvidia-smi -c DEFAULT`.",
    ),
    "confidential-computing": Code(
        "Confidential computing is on: transfers between host and GPU go through encrypted bounce buffers.", ""
    ),
    # memory
    "memory-unknown": Code(
        "The memory of a GPU could not be read.",
        'Give it by hand: `--machine "1x NAME, 64 GiB RAM"`.',
    ),
    "free-memory-unknown": Code(
        "The total memory of a GPU is known, what is free is not.",
        "Plans count on the total; close other programs that use the GPU.",
    ),
    "memory-unified": Code("The GPU has no memory of its own: it shares the host's.", ""),
    "memory-shared-by-partitions": Code(
        "Several compute partitions share the same memory; each is counted with an equal part.",
        "A partition that runs alone may take more.",
    ),
    "implausible-value": Code(
        "An interface answered a value that cannot be true; it was not used.",
        "",
    ),
    "holders-unknown": Code("The system does not say which processes hold memory of the GPU.", ""),
    "memory-held": Code(
        "Other processes hold a good part of a GPU's memory.",
        "Stop them to plan with more.",
    ),
    # partitions and visibility
    "mig-empty": Code(
        "MIG mode is on and there is no instance, so nothing can run on the GPU.",
        "Create instances: `sudo nvidia-smi mig -cgi PROFILE -C`, or turn MIG off.",
    ),
    "mig-pending": Code("A change of the MIG mode waits for a reset of the GPU.", "Reset the GPU or reboot."),
    "gpu-hidden": Code(
        "An environment variable hides a GPU from engines.",
        "Unset or change the variable to use the GPU.",
    ),
    "visibility-invalid": Code(
        "A visibility variable names a device that is not there; engines ignore it and everything after it.",
        "Correct the variable.",
    ),
    "device-order-uncertain": Code(
        "A visibility variable uses indices while the GPUs differ and CUDA_DEVICE_ORDER is not PCI_BUS_ID.",
        "Set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name devices by UUID.",
    ),
    "gfx-override": Code("HSA_OVERRIDE_GFX_VERSION makes ROCm treat the GPU as another one.", ""),
    "render-permission": Code(
        "This user may not open the AMD or Intel compute device.",
        "`sudo usermod -aG render,video $USER` and log in again; in a container pass "
        "`--device /dev/kfd --device /dev/dri`.",
    ),
    "kfd-missing": Code(
        "The compute device of the amdgpu driver is not there, so ROCm cannot use the GPU.",
        "In a container pass `--device /dev/kfd --device /dev/dri`; otherwise load amdgpu with compute support.",
    ),
    "smi-failed": Code(
        "AMD SMI answers an error when it starts; the kernel's files were used instead.",
        "Install the AMD SMI library of the installed ROCm release.",
    ),
    "smi-hangs": Code("AMD SMI did not answer in time; the kernel's files were used instead.", "See `dmesg`."),
    "smi-crashes": Code(
        "AMD SMI crashed or ended the process that asked it; the kernel's files were used instead.",
        "Install bindings and library of the same ROCm release.",
    ),
    "driver-below-engine-floor": Code(
        "The driver is older than an engine's builds need.",
        "Update the driver, or use a build for the older CUDA version.",
    ),
    "sources-disagree": Code(
        "Two interfaces answer differently for the same thing; the one nearer to the kernel was used.", ""
    ),
    # host
    "memory-limited": Code(
        "A control group limits the memory of this process below what the machine has.",
        "Raise the container's or service's memory limit.",
    ),
    "cpu-limited": Code(
        "Affinity or a CPU quota gives this process fewer cores than the machine has.",
        "Raise the container's CPU limit; engines must be told the number of threads.",
    ),
    "host-memory-unknown": Code("The host's memory could not be read.", ""),
    "cpu-unknown": Code("The processor could not be read.", ""),
    "model-folder-hangs": Code(
        "The file system of a model folder did not answer in time (a dead network mount, say).",
        "Check the mount (`findmnt`); unmount it with `umount -l` if its server is gone.",
    ),
    "model-folder-remote": Code(
        "A model folder is on a network or virtual file system; loading is slow.",
        "Keep models on a local disk.",
    ),
    "no-pci-inventory": Code(
        "The PCI bus could not be read, so a missing GPU cannot be told from a sick one.",
        "Make /sys available (containers mount it by default).",
    ),
    "unreadable": Code("A file that should be readable is not.", "Check its permissions."),
    "reader-failed": Code(
        "A reader of this program failed on unexpected input; the rest of the machine is complete.",
        "Please report it with `willitrun-here record DIR`.",
    ),
    "engine-version-unknown": Code(
        "An installed engine did not tell its version in time.",
        "",
    ),
}


def finding(code: str, subject: str, reason: str, advice: str | None = None) -> Finding:
    """Build a finding; the advice is the table's unless a more exact one is given."""
    return Finding(code=code, subject=subject, reason=reason, advice=CODES[code].advice if advice is None else advice)


def driver_broken(machine: Machine) -> bool:
    """Say whether a device is present and its driver unusable, which `probe` answers with exit code 3."""
    return any(CODES[found.code].broken for found in machine.findings if found.code in CODES)


def page() -> str:
    """Return docs/findings.md."""
    rows = [
        f"| `{code}` | {entry.meaning} | {entry.advice} | {'3' if entry.broken else ''} |"
        for code, entry in sorted(CODES.items())
    ]
    return "\n".join(
        [
            "# Findings",
            "",
            "<!-- written by `python -m willitrun_probe.findings`; a test compares -->",
            "",
            "What `probe` and `doctor` report beside the facts. Codes are stable: they may be matched in scripts.",
            "A `3` means that `probe` ends with exit code 3: a device is present and its driver unusable.",
            "",
            "| code | meaning | what to do | exit |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201 - prints the page for docs/findings.md
