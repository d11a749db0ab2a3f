"""One vLLM server over several machines: the built-in way and Ray, one command per node.

https://docs.vllm.ai/en/latest/serving/parallelism_scaling.html: tensor parallel inside a node, pipeline across nodes.
Every node needs the same files, the same vLLM and the same flags.
"""

from __future__ import annotations

from msgspec import structs

from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.plan import Command
from willitrun_estimator.vllm.versions import LATEST, Version
from willitrun_here.launch.target import Target, command
from willitrun_here.launch.vllm import arguments, checkpoint_note

MASTER_PORT = 29501
RAY_PORT = 6379
BUILT_IN_FROM: Version = (0, 12)
"""The first release with `--nnodes`."""


def across(target: Target, nodes: int) -> Target:
    """Stretch a plan for one node over several equal ones: the stages of the pipeline multiply.

    Raises EstimatorError for a model with fewer layers than stages.
    """
    stages = target.plan.pipeline_parallel * nodes
    if stages > target.spec.block_count:
        raise EstimatorError(
            f"{target.spec.title} has {target.spec.block_count} layers, fewer than {stages} stages", "use fewer nodes"
        )
    return structs.replace(target, plan=structs.replace(target.plan, pipeline_parallel=stages, data_parallel=1))


def built_in(target: Target, hosts: tuple[str, ...], *, version: Version = LATEST) -> tuple[Command, ...]:
    """Give one command per host; the first is the head and answers requests.

    Raises EstimatorError for versions before 0.12, which need Ray.
    """
    if version < BUILT_IN_FROM:
        raise EstimatorError(
            f"vLLM {version[0]}.{version[1]} cannot span nodes by itself", "upgrade, or use the Ray commands"
        )
    stretched = across(target, len(hosts))
    common = ["vllm", "serve", *arguments(stretched, host=target.host, port=target.port)]
    found = []
    for rank, _ in enumerate(hosts):
        argv = [*common, "--nnodes", str(len(hosts)), "--node-rank", str(rank)]
        argv += ["--master-addr", hosts[0], "--master-port", str(MASTER_PORT)]
        if rank:
            argv += ["--headless"]
        found.append(command(argv, {"VLLM_HOST_IP": hosts[rank]}, notes=(f"on {hosts[rank]}", checkpoint_note(target))))
    return tuple(found)


def ray(target: Target, hosts: tuple[str, ...]) -> tuple[Command, ...]:
    """Give the Ray commands: one to start each node, then the server on the head."""
    stretched = across(target, len(hosts))
    head = ["ray", "start", "--head", f"--port={RAY_PORT}", f"--node-ip-address={hosts[0]}"]
    found = [command(head, {"VLLM_HOST_IP": hosts[0]}, notes=(f"on {hosts[0]}",))]
    for host in hosts[1:]:
        joined = ["ray", "start", f"--address={hosts[0]}:{RAY_PORT}", f"--node-ip-address={host}"]
        found.append(command(joined, {"VLLM_HOST_IP": host}, notes=(f"on {host}",)))
    serve = ["vllm", "serve", *arguments(stretched, host=target.host, port=target.port)]
    serve += ["--distributed-executor-backend", "ray"]
    found.append(command(serve, {"VLLM_HOST_IP": hosts[0]}, notes=(f"on {hosts[0]}", checkpoint_note(target))))
    return tuple(found)
