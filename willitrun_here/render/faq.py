"""The questions people ask about a model on a machine, answered from the answer."""

from __future__ import annotations

from willitrun_estimator.plan import Answer, WorkloadRow
from willitrun_here.render.wording import (
    BASIS_WORDS,
    LEVEL_WORDS,
    STATUS_WORDS,
    WORKLOAD_WORDS,
    count,
    hardware,
    needed_bytes,
    rate_range,
    runs,
    summary,
    tokens,
    tokens_per_s,
)
from willitrun_probe.units import format_bytes, format_seconds


def questions(answer: Answer) -> tuple[tuple[str, str], ...]:
    """Return question and answer pairs; a question without an answer in the data is left out."""
    model, place = answer.model.title, hardware(answer)
    pairs = (
        (f"Can {place} run {model}?", _can_run(answer)),
        (f"How much memory does {model} need?", _memory(answer)),
        (f"What is the best quantization for {model}?", _quantization(answer)),
        (f"How fast is {model} on {place}?", _speed(answer)),
        *((f"Is {place} good for {_word(row).lower()} with {model}?", _workload(row)) for row in _coding(answer)),
        (f"How long a context can {model} use on {place}?", _context(answer)),
    )
    return tuple((question, text) for question, text in pairs if text)


def _can_run(answer: Answer) -> str:
    if not runs(answer):
        return "No. " + summary(answer)
    status = STATUS_WORDS[answer.fit.status].lower()
    return f"Yes: {status}, grade {answer.grade} ({answer.score} of 100). {summary(answer)}"


def _memory(answer: Answer) -> str:
    needed, plan = needed_bytes(answer), answer.plan
    if needed is None or plan is None:
        return answer.fit.message[:1].upper() + answer.fit.message[1:]
    return (
        f"{model_size(answer)} takes {format_bytes(needed)} on {hardware(answer)} in {plan.quant} with a context of "
        f"{tokens(plan.context_tokens)} tokens; the file has {format_bytes(plan.file_bytes)}."
    )


def model_size(answer: Answer) -> str:
    """Name the model with its parameters, and the active ones where they differ."""
    model = answer.model
    active = f", {count(model.active_params)} active" if model.active_params != model.params else ""
    return f"{model.title} ({count(model.params)} parameters{active})"


def _quantization(answer: Answer) -> str:
    best = next((option for option in answer.quants if option.best), None)
    if best is None:
        return ""
    level = LEVEL_WORDS[best.quality.level].lower()
    return (
        f"On this machine {best.quant}: {best.bits_per_weight:.2f} bits per weight, {format_bytes(best.file_bytes)}, "
        f"{level} quality, {tokens_per_s(best.decode_tokens_per_s)}."
    )


def _speed(answer: Answer) -> str:
    decode = answer.speed.decode_tokens_per_s if answer.speed else None
    if answer.speed is None or decode is None:
        return "Too little is known of this combination to say a number." if runs(answer) else ""
    basis = BASIS_WORDS[decode.basis]
    text = f"About {tokens_per_s(decode.expected)}, {basis}: {rate_range(decode)} in four of five cases"
    if answer.speed.ttft_s is not None:
        text += f", with the first token after {format_seconds(answer.speed.ttft_s.expected)}"
    return text + "."


def _coding(answer: Answer) -> tuple[WorkloadRow, ...]:
    return tuple(row for row in answer.workloads if row.workload == "coding")


def _word(row: WorkloadRow) -> str:
    return WORKLOAD_WORDS.get(row.workload, row.workload)


def _workload(row: WorkloadRow) -> str:
    return (
        f"Grade {row.grade}: {tokens_per_s(row.decode_tokens_per_s)}, context {tokens(row.context_tokens)}, "
        f"and the first token of a {tokens(row.prompt_tokens)}-token prompt after {format_seconds(row.ttft_s)}."
    )


def _context(answer: Answer) -> str:
    safe, most = answer.context.safe_tokens, answer.context.max_tokens
    if not runs(answer):
        return ""
    if safe >= most:
        return f"All of the model's {tokens(most)} tokens."
    return f"{tokens(safe)} tokens safely; the model allows {tokens(most)}, memory is what limits it."
