"""Where a server runs on a host with several memory nodes.

A plan that computes on GPUs alone stays on the node they hang on. One that computes on the host reads weights with the
bandwidth of all nodes, which is what it was planned with and what `calibrate` measures: its threads are spread, and
weights that are loaded into plain memory are interleaved, where they would fill one node first. (Mapped files need no
help: with `--numa` llama.cpp leaves their pages to the threads that read them, llama-mmap.cpp.) Binding it to one node
would halve cores and bandwidth, and what exceeds the node's free memory would land on the others anyway.
"""

from __future__ import annotations

from willitrun_here.launch import visible
from willitrun_here.launch.target import Target
from willitrun_probe.machine import NumaNode

NOTE = "numactl places the server on the host's memory nodes; it is a package of its own and may be left out."


def prefix(target: Target) -> list[str]:
    """Return the call of `numactl` before the server's; [] where it does not matter."""
    if interleaved(target):
        return ["numactl", f"--interleave={mask(target)}"]
    node = bound_node(target)
    return [] if node is None else ["numactl", f"--cpunodebind={node}", f"--preferred={node}"]


def directives(target: Target) -> list[str]:
    """Return the same for a unit (systemd.exec(5))."""
    if interleaved(target):
        return ["NUMAPolicy=interleave", f"NUMAMask={mask(target)}"]
    node = bound_node(target)
    return [] if node is None else ["NUMAPolicy=preferred", f"NUMAMask={node}", "CPUAffinity=numa"]


def arguments(target: Target) -> list[str]:
    """Spread the threads of a plan that computes on the host over all memory nodes (llama.cpp, `--numa`)."""
    return ["--numa", "distribute"] if spread(target) and "--numa" in target.flags else []


def threads(target: Target) -> int:
    """Return the threads to run: no more than the physical cores of the node where the server is bound to one."""
    cpu, node = target.machine.cpu, bound_node(target)
    logical = sum(one.cpus for one in compute_nodes(target) if one.node == node)
    if not logical:
        return target.plan.threads
    cores = logical * (cpu.physical_cores or 1) // (cpu.logical_cpus or cpu.physical_cores or 1)
    return max(1, min(target.plan.threads, cores))


def spread(target: Target) -> bool:
    """Tell whether the host multiplies weights and has several nodes to do it."""
    plan = target.plan
    return len(compute_nodes(target)) > 1 and (plan.gpu_layers == 0 or plan.offloaded_fraction > 0)


def interleaved(target: Target) -> bool:
    """Tell whether weights on the host are to be spread over several nodes as they are loaded."""
    return spread(target) and target.plan.gpu_layers > 0


def bound_node(target: Target) -> int | None:
    """Return the memory node that the planned GPUs share; None on a host with one node, or where it is not known."""
    nodes = {None if gpu is None else gpu.numa_node for gpu in visible.planned_gpus(target)}
    if spread(target) or len(compute_nodes(target)) < 2 or len(nodes) != 1:  # noqa: PLR2004 - one needs no binding
        return None
    (node,) = nodes
    return node if node is not None and node >= 0 else None


def mask(target: Target) -> str:
    """Write the nodes that have CPUs; those without are memory of GPUs on some machines (Grace Hopper)."""
    return ",".join(str(one.node) for one in compute_nodes(target))


def compute_nodes(target: Target) -> list[NumaNode]:
    """Return the memory nodes with CPUs."""
    return [node for node in target.machine.cpu.numa_nodes if node.cpus]
