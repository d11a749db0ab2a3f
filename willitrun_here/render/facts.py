"""The key figures of a plan as rows of words."""

from __future__ import annotations

from willitrun_estimator.plan import Answer, Plan
from willitrun_here.render.wording import (
    BASIS_WORDS,
    ENGINE_WORDS,
    available_bytes,
    gain,
    needed_bytes,
    percent,
    rate_range,
    runs,
    seconds_range,
    tokens,
    tokens_per_s,
)
from willitrun_probe.units import format_bytes, format_seconds


def facts(answer: Answer) -> tuple[tuple[str, str, str], ...]:
    """Return the key figures of a plan: name, value, remark."""
    plan, speed = answer.plan, answer.speed
    if plan is None:
        return ()
    memory = ("Memory", format_bytes(needed_bytes(answer)), f"of {format_bytes(available_bytes(answer))} free")
    if not runs(answer):
        return (memory, ("Smallest plan", plan.quant, f"with a context of {tokens(plan.context_tokens)} tokens"))
    rows: list[tuple[str, str, str]] = []
    if speed is not None:
        decode, prefill, ttft = speed.decode_tokens_per_s, speed.prefill_tokens_per_s, speed.ttft_s
        rows.append(("Decode", tokens_per_s(decode.expected if decode else None), rate_range(decode)))
        rows.append(("Prefill", tokens_per_s(prefill.expected if prefill else None), rate_range(prefill)))
        wait = seconds_range(ttft) + (f", prompt of {tokens(prompt)}" if (prompt := _prompt_tokens(answer)) else "")
        rows.append(("First token", format_seconds(ttft.expected if ttft else None), wait))
        if speed.ttft_cold_s is not None:
            rows.append(("From cold", format_seconds(speed.ttft_cold_s.expected), seconds_range(speed.ttft_cold_s)))
        if decode is not None:
            rows[0] = (*rows[0][:2], f"{rows[0][2]}, {BASIS_WORDS[decode.basis]}")
    context = answer.context
    rows.append(
        (
            "Safe context",
            tokens(context.safe_tokens),
            f"the model's limit is {tokens(context.max_tokens)}",
        )
    )
    rows.append(memory)
    if answer.machine.gpus:
        rows.append(("Offload", percent(plan.offloaded_fraction), "of the weights in host memory"))
    rows.append(("Plan", plan.quant, ", ".join(_plan_words(answer, plan))))
    if answer.engine_choice is not None:
        chosen = answer.engine_choice
        by = f" ({gain(chosen.gain)})" if chosen.gain else ""
        rows.append(("Engine", ENGINE_WORDS[chosen.engine], chosen.reason + by))
    return tuple(rows)


def _prompt_tokens(answer: Answer) -> int:
    """Return the length of the prompt the first token is timed for, 0 where the answer does not say."""
    request = answer.request
    if request is None:
        return 0
    if request.prompt_tokens is not None:
        return request.prompt_tokens
    return next((row.prompt_tokens for row in answer.workloads if row.workload == request.workload), 0)


def _plan_words(answer: Answer, plan: Plan) -> list[str]:
    """Return how the plan lays the model out, in the terms of its engine."""
    words = [ENGINE_WORDS.get(plan.engine, plan.engine)]
    if plan.engine == "vllm":
        for name, ways in (("tensor", plan.tensor_parallel), ("pipeline", plan.pipeline_parallel)):
            words += [f"{name} parallel {ways}"] if ways > 1 else []
        words += [f"up to {plan.max_num_seqs} requests at once"] if plan.max_num_seqs else []
        words += [plan.kernel] if plan.kernel else []
    elif answer.machine.gpus:
        words.append(f"{plan.gpu_layers} of {plan.layers + 1} layers on the GPU")
    if plan.cpu_moe_layers:
        words.append(f"experts of {plan.cpu_moe_layers} in host memory")
    cut = sum(not one.whole for one in plan.experts_apart)
    if cut:
        words.append("1 layer cut in two" if cut == 1 else f"{cut} layers cut in two")
    return [*words, f"KV cache {plan.kv_type}", f"context {tokens(plan.context_tokens)}"]
