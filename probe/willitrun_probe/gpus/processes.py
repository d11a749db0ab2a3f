"""Names for process ids that a driver reports."""

from __future__ import annotations

import re

from willitrun_probe.machine import Holder
from willitrun_probe.roots import Roots

INITIAL_PID_NAMESPACE = "pid:[4026531836]"
"""The host's process namespace has this fixed number (Linux, include/linux/proc_ns.h, PROC_PID_INIT_INO). In any
other one the host's ids, which drivers report, mean other processes or none (nvidia-docker #1483)."""
_CONTAINER = r"(?a)(?:docker|containerd|crio|libpod|cri)[-/:a-z]*([0-9a-f]{64})"
_POD = r"(?am)/([0-9a-f]{64})(?:\.scope)?$"


def in_container(roots: Roots) -> bool:
    """Say whether this process sees a container's part of the machine, not all of it."""
    namespace = roots.link("/proc/self/ns/pid")
    marked = roots.exists("/.dockerenv") or roots.exists("/run/.containerenv")
    return marked or (namespace is not None and namespace != INITIAL_PID_NAMESPACE)


def holder(roots: Roots, pid: int, size: int | None) -> Holder:
    """Name a process and its container as far as this process may see them."""
    namespace = roots.link("/proc/self/ns/pid")
    if namespace is not None and namespace != INITIAL_PID_NAMESPACE:
        return Holder(pid=pid, bytes=size)
    name = roots.line(f"/proc/{pid}/comm")
    groups = roots.text(f"/proc/{pid}/cgroup") or ""
    match = re.search(_CONTAINER, groups) or re.search(_POD, groups)
    return Holder(pid=pid, name=name, bytes=size, container=match.group(1)[:12] if match else None)
