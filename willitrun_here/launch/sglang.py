"""SGLang's command for a vLLM plan, as far as the plan holds for it.

SGLang gives weights and cache one fraction of the memory (`--mem-fraction-static`) and was not modelled: only the
split, the length and the number of requests carry over, and the note says so. Flags:
https://docs.sglang.ai/advanced_features/server_arguments.html.
"""

from __future__ import annotations

from willitrun_estimator.plan import Command
from willitrun_estimator.vllm.formats import format_of
from willitrun_estimator.vllm.versions import LATEST
from willitrun_here.launch.target import Target, command
from willitrun_here.launch.vllm import checkpoint_note, environment, made_while_loading, model

NOTE = "SGLang was not modelled: its memory and speed differ from this plan; the split, length and requests carry over."


def render(target: Target) -> Command:
    """Give the launch command."""
    plan = target.plan
    argv = ["python3", "-m", "sglang.launch_server", "--model-path", model(target)]
    argv += ["--served-model-name", target.spec.name]
    method = format_of(plan.quant).method
    if method == "fp8" and made_while_loading(target):
        argv += ["--quantization", "fp8"]
    argv += ["--context-length", str(plan.context_tokens)]
    for name, degree in (
        ("--tp-size", plan.tensor_parallel),
        ("--pp-size", plan.pipeline_parallel),
        ("--dp-size", plan.data_parallel),
    ):
        if degree > 1:
            argv += [name, str(degree)]
    if plan.max_num_seqs is not None:
        argv += ["--max-running-requests", str(plan.max_num_seqs)]
    if plan.kv_type != "auto":
        argv += ["--kv-cache-dtype", "fp8_e5m2" if plan.kv_type == "fp8_e5m2" else "fp8_e4m3"]
    argv += ["--host", target.host, "--port", str(target.port)]
    return command(argv, environment(target, LATEST), notes=(NOTE, checkpoint_note(target)))
