"""One vLLM server over several equal machines: the built-in way and Ray, the commands of every node.

https://docs.vllm.ai/en/latest/serving/parallelism_scaling.html: tensor parallel inside a node, pipeline across nodes.
Every node needs the same checkpoint at the same place, the same vLLM and the same flags. The plan is one of
`willitrun_estimator.vllm.across.plan_across`.
"""

from __future__ import annotations

from msgspec import structs

from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.plan import Command
from willitrun_estimator.vllm.versions import Version, name_of
from willitrun_here.launch.target import Target, command
from willitrun_here.launch.vllm import arguments, checkpoint_note, version_of

MASTER_PORT = 29501
RAY_PORT = 6379
BUILT_IN_FROM: Version = (0, 12)
"""The first release with `--nnodes`."""
NETWORK = (
    "The ports 29501 (or Ray's 6379) and NCCL's must be open between the nodes; where they have several networks, set "
    "NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME to the fast one. The network is not part of the predicted speed."
)


def on_node(target: Target, nodes: int) -> int:
    """Count the GPUs that one node gives.

    Raises EstimatorError where the ranks of the plan are not the same number on every node, or a stage would have its
    tensor-parallel ranks on two of them.
    """
    plan = target.plan
    ranks, rest = divmod(plan.tensor_parallel * plan.pipeline_parallel * plan.data_parallel, nodes)
    if rest or plan.pipeline_parallel % nodes:
        raise EstimatorError(
            f"{plan.pipeline_parallel} stages of {plan.tensor_parallel} ranks are not the same on {nodes} nodes",
            f"plan for {nodes} nodes, or take --pipeline-parallel in steps of {nodes}",
        )
    return ranks


def node_environment(target: Target, nodes: int, host: str) -> dict[str, str]:
    """Give the environment of a node: its address, and the first GPUs where it has more than the plan takes."""
    ranks = on_node(target, nodes)
    env = {"VLLM_HOST_IP": host}
    here = [gpu for gpu in target.machine.gpus if gpu.visible and gpu.usable]
    if ranks < len(here):
        first = ",".join(str(i if i is not None else at) for at, i in enumerate(target.plan.gpu_indexes[:ranks]))
        if target.plan.backend == "rocm":
            return env | {"HIP_VISIBLE_DEVICES": first}
        return env | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": first}
    return env


def built_in(target: Target, hosts: tuple[str, ...]) -> tuple[Command, ...]:
    """Give one command per host; the first is the head and answers requests.

    Raises EstimatorError for plans that do not spread evenly, and for releases before 0.12, which need Ray.
    """
    version = version_of(target, None)
    if version < BUILT_IN_FROM:
        raise EstimatorError(f"vLLM {name_of(version)} cannot span nodes by itself", "upgrade, or use the Ray commands")
    common = ["vllm", "serve", *arguments(plain(target), host=target.host, port=target.port)]
    common += ["--distributed-executor-backend", "mp", "--nnodes", str(len(hosts))]
    common += ["--master-addr", hosts[0], "--master-port", str(MASTER_PORT)]
    found = []
    for rank, host in enumerate(hosts):
        argv = [*common, "--node-rank", str(rank), *(["--headless"] if rank else []), *target.extra]
        notes = (f"on {host}", checkpoint_note(target), None if rank else NETWORK)
        found.append(command(argv, node_environment(target, len(hosts), host), notes=notes))
    return tuple(found)


def ray(target: Target, hosts: tuple[str, ...]) -> tuple[Command, ...]:
    """Give the Ray commands: one to start each node, then the server on the head.

    Raises EstimatorError for plans that do not spread evenly.
    """
    gpus = on_node(target, len(hosts))
    found = []
    for rank, host in enumerate(hosts):
        argv = ["ray", "start", *([f"--address={hosts[0]}:{RAY_PORT}"] if rank else ["--head", f"--port={RAY_PORT}"])]
        argv += [f"--node-ip-address={host}", f"--num-gpus={gpus}"]
        notes = (f"on {host}", None if rank else NETWORK)
        found.append(command(argv, node_environment(target, len(hosts), host), notes=notes))
    serve = ["vllm", "serve", *arguments(plain(target), host=target.host, port=target.port)]
    serve += ["--distributed-executor-backend", "ray", *target.extra]
    notes = (f"on {hosts[0]}, once `ray status` lists every node", checkpoint_note(target))
    found.append(command(serve, {"VLLM_HOST_IP": hosts[0]}, notes=notes))
    return tuple(found)


def plain(target: Target) -> Target:
    """Leave the reader's own arguments out; they come last."""
    return structs.replace(target, extra=())
