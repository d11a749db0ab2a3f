"""Host memory that an engine can really get: control groups, reclaimable cache and the ZFS cache counted."""

from __future__ import annotations

from willitrun_probe.host import darwin
from willitrun_probe.machine import Memory, NumaNode
from willitrun_probe.roots import Roots, cpu_list, key_values, to_integer

KIB = 1024
UNLIMITED = 2**60
"""Limits from here on mean "none": cgroup v1 writes 2^63 rounded down to pages (kernel, cgroup-v1/memory.rst)."""
_RECLAIMABLE_V2 = ("active_file", "inactive_file", "slab_reclaimable")
_RECLAIMABLE_V1 = ("total_active_file", "total_inactive_file")


def read_memory(roots: Roots, gpu_nodes: frozenset[int] = frozenset()) -> Memory:
    """Read the host's memory; `gpu_nodes` are NUMA nodes that are a GPU's memory and no RAM (Grace).

    available = min(MemAvailable + reclaimable ZFS cache, for every control group above this process: limit minus
    what it uses and cannot give back). Swap never counts. Linux, Documentation/admin-guide/cgroup-v2.rst.
    """
    if roots.system == "Darwin":
        return darwin.read_memory(roots)
    info = meminfo(roots)
    total, available = info.get("MemTotal"), info.get("MemAvailable")
    if available is None and "MemFree" in info:  # kernels before 3.14
        available = info["MemFree"] + info.get("Cached", 0) + info.get("Buffers", 0)
    for node in numa_nodes(roots):
        if node.node in gpu_nodes:
            total = None if total is None else max(0, total - (node.memory_total_bytes or 0))
            available = None if available is None else max(0, available - (node.memory_free_bytes or 0))
    if available is not None:
        available += arc_reclaimable_bytes(roots)
        if total is not None:
            available = min(available, total)
    limit: int | None = None
    for group_limit, used in control_groups(roots):
        limit = group_limit if limit is None else min(limit, group_limit)
        room = max(0, group_limit - used)
        available = room if available is None else min(available, room)
    size, free_pages = info.get("Hugepagesize"), info.get("HugePages_Free")
    reserved = info.get("HugePages_Total")
    huge = size * free_pages if size and free_pages is not None and reserved else None
    source = "procfs" if info else None
    names = {"total_bytes": total, "available_bytes": available, "limit_bytes": limit}
    return Memory(
        total_bytes=total,
        available_bytes=available,
        limit_bytes=limit,
        huge_pages_free_bytes=huge if huge is None or huge < UNLIMITED else None,
        sources={name: source or "cgroup" for name, value in names.items() if value is not None},
    )


def meminfo(roots: Roots) -> dict[str, int]:
    """Read /proc/meminfo in bytes (huge page counts stay counts)."""
    found: dict[str, int] = {}
    for key, value in key_values(roots.text("/proc/meminfo")).items():
        number, _, unit = value.partition(" ")
        amount = to_integer(number)
        if key and amount is not None and 0 <= amount < UNLIMITED // KIB:
            found[key] = amount * KIB if unit.strip() == "kB" else amount
    return found


def arc_reclaimable_bytes(roots: Roots) -> int:
    """Return what the ZFS cache gives back under pressure: its size above its minimum (openzfs #10255)."""
    sizes: dict[str, int] = {}
    for line in (roots.text("/proc/spl/kstat/zfs/arcstats") or "").splitlines():
        parts = line.split()
        if len(parts) == 3 and (value := to_integer(parts[2])) is not None:  # noqa: PLR2004 - name, type, data
            sizes[parts[0]] = value
    if "size" not in sizes:
        return 0
    return min(max(0, sizes["size"] - sizes.get("c_min", 0)), UNLIMITED)


def control_groups(roots: Roots) -> list[tuple[int, int]]:
    """Return (limit, unreclaimable use) in bytes of every limited memory control group above this process."""
    found: list[tuple[int, int]] = []
    for version, folder in control_group_folders(roots, "memory"):
        stat = key_values(roots.text(f"{folder}/memory.stat"), " ")
        if version == 2:  # noqa: PLR2004 - cgroup version
            limits = [roots.integer(f"{folder}/memory.max"), roots.integer(f"{folder}/memory.high")]
            used, reclaimable = "memory.current", list(_RECLAIMABLE_V2)
        else:
            ancestors = to_integer(stat.get("hierarchical_memory_limit"))
            limits = [roots.integer(f"{folder}/memory.limit_in_bytes"), ancestors]
            used, reclaimable = "memory.usage_in_bytes", list(_RECLAIMABLE_V1)
        real = [limit for limit in limits if limit is not None and 0 <= limit < UNLIMITED]
        if not real:
            continue
        cache = sum(max(0, to_integer(stat.get(name)) or 0) for name in reclaimable)
        current = max(0, roots.integer(f"{folder}/{used}") or 0)
        found.append((min(real), max(0, current - cache)))
    return found


def control_group_folders(roots: Roots, controller: str) -> list[tuple[int, str]]:
    """Return (version, folder) of this process's control group and all its ancestors, innermost first.

    A process in a container may see a group path of the host that is not mounted there; then the mount itself
    is its group (Linux, cgroup_namespaces(7)).
    """
    own: dict[int, str] = {}
    for line in (roots.text("/proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            own[2] = path
        elif controller in names.split(","):
            own[1] = path
    found: list[tuple[int, str]] = []
    for version, base, mount_point in _control_group_mounts(roots, controller):
        path = own.get(version, "")
        if not path:
            continue
        inside = _below(path, base)
        folder = f"{mount_point}{inside}".rstrip("/")
        if inside and not roots.listing(folder):
            folder = mount_point
        while folder.startswith(mount_point):
            found.append((version, folder))
            if folder == mount_point:
                break
            folder = folder.rpartition("/")[0]
    return found


def _below(path: str, mount_root: str) -> str:
    """Return the part of a group path that lies below what is mounted, "" when it is not below it."""
    if ".." in path.split("/"):
        return ""
    base = mount_root.rstrip("/")
    if path == base or not path.startswith(f"{base}/"):
        return ""
    return path[len(base) :].rstrip("/")


def _control_group_mounts(roots: Roots, controller: str) -> list[tuple[int, str, str]]:
    found: list[tuple[int, str, str]] = []
    for line in (roots.text("/proc/self/mountinfo") or "").splitlines():
        left, mark, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")
        if not mark or len(fields) < 5 or not fields[4].startswith("/"):  # noqa: PLR2004 - proc(5), mountinfo
            continue
        if kind[0] == "cgroup2":
            found.append((2, fields[3], fields[4].rstrip("/")))
        elif kind[0] == "cgroup" and controller in kind[-1].split(","):
            found.append((1, fields[3], fields[4].rstrip("/")))
    return found


def numa_nodes(roots: Roots) -> tuple[NumaNode, ...]:
    """Read the memory nodes; those without CPUs are listed too (GPU memory on Grace, CXL memory elsewhere)."""
    found: list[NumaNode] = []
    base = "/sys/devices/system/node"
    for name in roots.listing(base):
        number = to_integer(name[4:]) if name.startswith("node") else None
        if number is None or not 0 <= number < 2**31:
            continue
        info: dict[str, int] = {}
        for line in (roots.text(f"{base}/{name}/meminfo") or "").splitlines():
            key, _, value = line.partition(":")
            amount = to_integer(value.split()[0]) if value.split() else None
            if amount is not None and 0 <= amount < UNLIMITED // KIB and key.split():
                info[key.split()[-1]] = amount * KIB
        found.append(
            NumaNode(
                node=number,
                cpus=len(cpu_list(roots.text(f"{base}/{name}/cpulist"))),
                memory_total_bytes=info.get("MemTotal"),
                memory_free_bytes=info.get("MemFree"),
            )
        )
    return tuple(sorted(found, key=lambda node: node.node))
