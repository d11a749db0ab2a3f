"""The words and number formats every renderer shares, so that terminal, page and Markdown say the same."""

from __future__ import annotations

import unicodedata

from willitrun_estimator.plan import Answer, Basis, Grade, Interval, Status
from willitrun_estimator.request import Mode
from willitrun_probe.units import KIB, format_bytes, format_seconds, format_tokens

STATUS_WORDS: dict[Status, str] = {
    "comfortable": "Comfortable fit",
    "fits": "Fits",
    "tight": "Tight fit",
    "offload": "Fits with offload",
    "paging": "Reads from disk",
    "too-large": "Does not fit",
}
GRADE_WORDS = {"S": "Superb", "A": "Great", "B": "Good", "C": "Usable", "D": "Poor", "F": "Not advised"}
TONES: dict[Status, str] = {
    "comfortable": "good",
    "fits": "good",
    "tight": "fair",
    "offload": "fair",
    "paging": "bad",
    "too-large": "bad",
}
GRADE_TONES: dict[Grade, str] = {"S": "good", "A": "good", "B": "good", "C": "fair", "D": "bad", "F": "bad"}
SHORT_STATUS: dict[Status, str] = {
    "comfortable": "Comfortable",
    "fits": "Fits",
    "tight": "Tight",
    "offload": "Offload",
    "paging": "From disk",
    "too-large": "Too large",
}
"""The same for the cells of tables."""
BASIS_WORDS: dict[Basis, str] = {
    "measured-here": "measured on this machine",
    "calibrated": "corrected by what this machine measured",
    "measured-alike": "measured on the same hardware elsewhere",
    "estimated": "estimated",
}
MODE_WORDS: dict[Mode, tuple[str, str]] = {
    "balanced": ("Balanced", "For general local use: quality, speed, waiting time and context all count."),
    "interactive": ("Interactive", "One user at the keyboard: speed and a short wait count more than quality."),
    "light-api": ("Light API", "A few requests at once: the total rate at a small concurrency counts."),
    "scale-out": ("Scale-out", "Many requests at once: the total rate decides."),
}
WORKLOAD_WORDS = {
    "chat": "Chat",
    "coding": "Coding",
    "agentic": "Agentic coding",
    "reasoning": "Reasoning",
    "rag": "RAG",
}
LEVEL_WORDS = {
    "maximum": "Maximum",
    "very-high": "Very high",
    "high": "High",
    "medium": "Medium",
    "low": "Low",
    "very-low": "Very low",
    "unknown": "Unknown",
}
ENGINE_WORDS = {"llama.cpp": "llama.cpp", "ollama": "Ollama", "vllm": "vLLM", "docker": "Docker", "sglang": "SGLang"}
_SUFFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"))
_WHOLE_FROM = 20
_TENTHS_FROM = 1
_ROUNDED_FROM = 10_000


def printable(text: str) -> str:
    """Return `text` without control characters, so that a name cannot move the cursor or recolour a terminal."""
    return "".join(" " if unicodedata.category(char) in {"Cc", "Cf", "Zl", "Zp"} else char for char in text)


def number(value: float) -> str:
    """Write a rate with the digits its accuracy carries: 1,480, 74, 16.7, 0.35."""
    if value >= _WHOLE_FROM:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= _TENTHS_FROM else f"{value:.2f}"


def tokens(value: int | None) -> str:
    """Write a token count in the round figures of models, rounded down from 10,000 on: 8K, 129K, 1M, 6000."""
    if value is not None and value >= _ROUNDED_FROM:
        value -= value % KIB
    return format_tokens(value)


def tokens_per_s(value: float | None) -> str:
    """Write a token rate; unknown is a dash."""
    return "-" if value is None else f"{number(value)} tok/s"


def rate_range(interval: Interval | None) -> str:
    """Write the bounds of a token rate: `52-96 tok/s`; unknown is a dash."""
    return "-" if interval is None else f"{number(interval.low)}\u2013{number(interval.high)} tok/s"


def seconds_range(interval: Interval | None) -> str:
    """Write the bounds of a duration; unknown is a dash."""
    return "-" if interval is None else f"{format_seconds(interval.low)} \u2013 {format_seconds(interval.high)}"


def count(value: float) -> str:
    """Write a parameter count as model names do: 48.1B, 350M."""
    for factor, suffix in _SUFFIXES:
        if value >= factor:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:.0f}"


def percent(fraction: float) -> str:
    """Write a share: 92%; below one per cent and above zero it says so."""
    if 0 < fraction < 0.005:  # noqa: PLR2004 - what rounds to nought
        return "<1%"
    return f"{fraction * 100:.0f}%"


def gain(fraction: float) -> str:
    """Write a relative gain: +62%; from 100% on as a factor."""
    return f"\u00d7{1 + fraction:.1f}" if fraction >= 1 else f"{fraction * 100:+.0f}%"


def runs(answer: Answer) -> bool:
    """Return whether the model starts at all on this machine."""
    return answer.plan is not None and answer.fit.status != "too-large"


def verdict(answer: Answer) -> str:
    """Return YES or NO."""
    return "YES" if runs(answer) else "NO"


def hardware(answer: Answer) -> str:
    """Name what the model would run on: the GPUs with their counts, or the processor."""
    counts: dict[str, int] = {}
    for gpu in answer.machine.gpus:
        counts[gpu.name] = counts.get(gpu.name, 0) + 1
    if not counts:
        return answer.machine.cpu or "this processor"
    return ", ".join(name if n == 1 else f"{n}\u00d7 {name}" for name, n in counts.items())


def needed_bytes(answer: Answer) -> int | None:
    """Return what the plan takes of the GPUs, or of host memory on a machine planned without any."""
    if answer.plan is None:
        return None
    gpus = [use.total_bytes for use in answer.plan.devices if use.kind == "gpu"]
    return sum(gpus) if gpus else answer.plan.memory_bytes


def available_bytes(answer: Answer) -> int:
    """Return what was free before loading on the devices that `needed_bytes` counts."""
    if answer.plan is None:
        return sum(gpu.memory_free_bytes for gpu in answer.machine.gpus) or answer.machine.ram_available_bytes
    gpus = [use.free_bytes for use in answer.plan.devices if use.kind == "gpu"]
    return sum(gpus) if gpus else answer.machine.ram_available_bytes


def summary(answer: Answer) -> str:
    """Return the answer in one or two sentences."""
    name, place = answer.model.title, hardware(answer)
    plan, needed = answer.plan, needed_bytes(answer)
    if plan is None or needed is None or not runs(answer):
        return answer.fit.message[:1].upper() + answer.fit.message[1:]
    text = (
        f"{name} in {plan.quant} takes {format_bytes(needed)} of the {format_bytes(available_bytes(answer))} free on "
        f"{place}, with a context of {tokens(plan.context_tokens)} tokens."
    )
    if plan.offloaded_fraction > 0:
        text += f" {percent(plan.offloaded_fraction)} of the weights stay in host memory."
    decode = answer.speed.decode_tokens_per_s if answer.speed else None
    if decode is not None:
        text += f" Expect about {tokens_per_s(decode.expected)} ({rate_range(decode)})."
    return text


def remark(answer: Answer) -> str:
    """Return the estimator's own sentence where it says more than the summary: an offload, a reading from disk."""
    return answer.fit.message if answer.fit.status in {"offload", "paging"} else ""


def title(answer: Answer) -> str:
    """Return the question the answer is to."""
    return f"Can {hardware(answer)} run {answer.model.title}?"


def current_mode(answer: Answer) -> Mode:
    """Return the operating mode that was asked for."""
    return answer.request.mode if answer.request is not None else "balanced"
