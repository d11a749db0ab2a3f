"""A plan over several equal machines: tensor parallel inside each, the stages of the pipeline across them.

The rule of https://docs.vllm.ai/en/latest/serving/parallelism_scaling.html: the network between machines is too slow
for the two all-reduces of every layer, and passes one hidden state a stage easily.
"""

from __future__ import annotations

from msgspec import structs

from willitrun_catalog.model import ModelSpec
from willitrun_estimator.device import Devices
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.request import Request
from willitrun_estimator.vllm.objectives import TIE
from willitrun_estimator.vllm.outcome import VllmPlan
from willitrun_estimator.vllm.parallel import alike
from willitrun_estimator.vllm.plan import SAME_GPUS_TIE, vllm_plan
from willitrun_estimator.vllm.versions import Version


def plan_across(
    spec: ModelSpec, devices: Devices, request: Request, nodes: int, *, version: str | Version | None = None
) -> VllmPlan:
    """Plan a model on several machines like this one; the devices of the plan are listed machine by machine.

    `request.tensor_parallel` fixes the ranks inside a machine. The network's share of the time is not in the speed.
    Raises EstimatorError for fewer than two machines, and whatever `vllm_plan` raises.
    """
    if nodes < 2:  # noqa: PLR2004 - one machine is no several
        raise EstimatorError(f"{nodes} machines are no group", "name two or more")
    members = alike(devices.gpus)
    best: VllmPlan | None = None
    refused: VllmPlan | None = None
    most = 0
    for ranks in range(1, len(members) + 1):
        for stages in range(1, ranks + 1):
            tensor, rest = divmod(ranks, stages)
            if rest or request.tensor_parallel not in {None, tensor}:
                continue
            used = tuple(devices.gpus[i] for i in members[:ranks]) * nodes
            asked = structs.replace(request, tensor_parallel=tensor, pipeline_parallel=stages * nodes)
            found = vllm_plan(spec, structs.replace(devices, gpus=used), asked, version=version)
            if found.plan is None:
                refused = found
            elif best is None or found.value > best.value * (1 + (TIE if ranks > most else SAME_GPUS_TIE)):
                best, most = found, ranks
    return best or refused or vllm_plan(spec, devices, request, version=version)
