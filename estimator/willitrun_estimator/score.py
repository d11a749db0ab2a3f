"""The objective: one documented formula turns quality, speed, waiting time and context into 0..100.

    score = 100 x quality^a x decode^b x first_token^c x context^d        a + b + c + d = 1

Each factor is 0..1 and saturates, because twice as fast is not twice as good once it is faster than one reads:

    quality      exp(-4 x KL divergence of weights and KV cache from the unquantized model)
    decode       r / (r + r0)     r0 = the speed at which half the benefit is reached
    first_token  t0 / (t0 + t)    t0 = a wait that halves the benefit
    context      min(1, log2(1 + context / 1024) / log2(1 + wanted / 1024))

`r0`, `t0`, the wanted context, prompt and output lengths come from the workload; the exponents from the mode. For the
serving modes the speed is the aggregate output rate at the mode's concurrency, over `r0` times that concurrency.
"""

from __future__ import annotations

import math

from msgspec import Struct

from willitrun_estimator.plan import Grade, ScorePart
from willitrun_estimator.request import Mode, Workload

UNKNOWN_FACTOR = 0.5
"""What an unknown speed counts for: neither praise nor blame, so that quality and context decide."""

KL_WEIGHT = 4.0
"""Q4_K_M (KL about 0.03 on an 8B model) keeps 0.89, Q2_K (about 0.4) 0.2: the drop people report below 3 bits."""

GRADES: tuple[tuple[int, Grade], ...] = ((90, "S"), (78, "A"), (65, "B"), (50, "C"), (30, "D"))


class Purpose(Struct, frozen=True, kw_only=True):
    """What a workload needs: lengths in tokens, and the speeds at which half the benefit is reached."""

    prompt_tokens: int
    output_tokens: int
    context_tokens: int
    half_decode_per_s: float
    half_ttft_s: float


PURPOSES: dict[Workload, Purpose] = {
    # Chat is read as it comes: 238 words a minute (Brysbaert 2019) at 0.75 words a token are 5.3 tokens/s.
    "chat": Purpose(prompt_tokens=512, output_tokens=256, context_tokens=8192, half_decode_per_s=5.3, half_ttft_s=4.0),
    "coding": Purpose(
        prompt_tokens=2048, output_tokens=512, context_tokens=16384, half_decode_per_s=10.0, half_ttft_s=8.0
    ),
    # Agents read their own output and wait for every step; prompts are mostly cached between the steps.
    "agentic": Purpose(
        prompt_tokens=8192, output_tokens=512, context_tokens=65536, half_decode_per_s=15.0, half_ttft_s=20.0
    ),
    # Thousands of thinking tokens come before the answer.
    "reasoning": Purpose(
        prompt_tokens=1024, output_tokens=4096, context_tokens=32768, half_decode_per_s=20.0, half_ttft_s=6.0
    ),
    "rag": Purpose(
        prompt_tokens=6144, output_tokens=256, context_tokens=16384, half_decode_per_s=5.3, half_ttft_s=10.0
    ),
}


class Lens(Struct, frozen=True, kw_only=True):
    """Exponents of a mode, and how many requests run at once when speed is taken."""

    quality: float
    decode: float
    ttft: float
    context: float
    concurrency: int


LENSES: dict[Mode, Lens] = {
    "balanced": Lens(quality=0.40, decode=0.30, ttft=0.15, context=0.15, concurrency=1),
    "interactive": Lens(quality=0.25, decode=0.40, ttft=0.25, context=0.10, concurrency=1),
    "light-api": Lens(quality=0.30, decode=0.40, ttft=0.20, context=0.10, concurrency=6),
    "scale-out": Lens(quality=0.20, decode=0.60, ttft=0.10, context=0.10, concurrency=32),
}


def quality_factor(kl_divergence: float) -> float:
    """Return the quality kept, 0..1, from the sum of the KL divergences of weights and cache."""
    return math.exp(-KL_WEIGHT * kl_divergence)


def decode_factor(tokens_per_s: float, half_per_s: float) -> float:
    """Return the benefit of a decode rate, 0..1."""
    return tokens_per_s / (tokens_per_s + half_per_s)


def ttft_factor(seconds: float, half_s: float) -> float:
    """Return the benefit left after waiting for the first token, 0..1."""
    return half_s / (half_s + seconds)


def context_factor(tokens: int, wanted_tokens: int) -> float:
    """Return how much of the wanted context there is, 0..1, on a logarithmic scale."""
    return min(1.0, math.log2(1 + tokens / 1024) / math.log2(1 + wanted_tokens / 1024))


def score(*, quality: float, decode: float, ttft: float, context: float, lens: Lens) -> float:
    """Combine the four factors (each 0..1) into 0..100."""
    if min(quality, decode, ttft, context) <= 0:
        return 0.0
    logarithm = (
        lens.quality * math.log(quality)
        + lens.decode * math.log(decode)
        + lens.ttft * math.log(ttft)
        + lens.context * math.log(context)
    )
    return 100.0 * math.exp(logarithm)


class Objective(Struct, frozen=True, kw_only=True):
    """What is being maximised, and what must hold."""

    purpose: Purpose
    lens: Lens
    min_rate: float | None = None
    max_ttft_s: float | None = None

    def factors(
        self, *, quality: float, rate: float | None, ttft_s: float | None, context_tokens: int
    ) -> tuple[float, float, float, float]:
        """Return quality, decode, first token and context as 0..1; an unknown speed counts as half its benefit."""
        half = self.purpose.half_decode_per_s * self.lens.concurrency
        return (
            quality,
            UNKNOWN_FACTOR if rate is None else decode_factor(rate, half),
            UNKNOWN_FACTOR if ttft_s is None else ttft_factor(ttft_s, self.purpose.half_ttft_s),
            context_factor(context_tokens, self.purpose.context_tokens),
        )

    def at_most(self, quality: float, context_tokens: int) -> float:
        """Return a score that no speed exceeds."""
        context = context_factor(context_tokens, self.purpose.context_tokens)
        return score(quality=quality, decode=1.0, ttft=1.0, context=context, lens=self.lens)

    def judge(self, *, quality: float, rate: float | None, ttft_s: float | None, context_tokens: int) -> float:
        """Return the score of a plan; one that misses a demanded rate or wait is scaled down by how far it misses."""
        kept, decode, ttft, context = self.factors(
            quality=quality, rate=rate, ttft_s=ttft_s, context_tokens=context_tokens
        )
        points = score(quality=kept, decode=decode, ttft=ttft, context=context, lens=self.lens)
        if self.min_rate is not None and rate is not None and rate < self.min_rate:
            points *= 0.1 * rate / self.min_rate
        if self.max_ttft_s is not None and ttft_s is not None and ttft_s > self.max_ttft_s:
            points *= 0.1 * self.max_ttft_s / ttft_s
        return points


def score_parts(
    *,
    quality: float,
    decode: float,
    ttft: float,
    context: float,
    lens: Lens,
    reasons: tuple[str, str, str, str],
) -> tuple[ScorePart, ...]:
    """Return the factors with their exponents, for showing how a score came about."""
    rows = (
        ("quality", quality, lens.quality),
        ("decode", decode, lens.decode),
        ("first token", ttft, lens.ttft),
        ("context", context, lens.context),
    )
    return tuple(
        ScorePart(name=name, value=value, weight=weight, reason=reason)
        for (name, value, weight), reason in zip(rows, reasons, strict=True)
    )


def grade(points: float) -> Grade:
    """Return the letter of a score."""
    for least, letter in GRADES:
        if points >= least:
            return letter
    return "F"


DENSITY_DOUBLING_MONTHS = 12.0
"""Months in which the size needed for the same ability halves. Xiao et al. 2024 (arXiv:2412.04315) measured 3.3 on
benchmarks; ranking uses a slower rate because benchmarks are also what new models are trained towards."""
STRENGTH_HALF_PARAMS = 12e9
STRENGTH_EPOCH = (2023, 7)


def strength(params: int, active_params: int, release_date: str | None) -> float:
    """Return a model's presumed ability, 0..1, from its size and age alone (basis: size and family).

    A mixture of experts counts as the geometric mean of its total and active parameters.
    """
    size = math.sqrt(float(params) * float(active_params))
    months = 0.0
    if release_date is not None:
        year, month = int(release_date[0:4]), int(release_date[5:7])
        months = max(0.0, (year - STRENGTH_EPOCH[0]) * 12.0 + (month - STRENGTH_EPOCH[1]))
    effective = size * 2 ** (months / DENSITY_DOUBLING_MONTHS)
    return effective / (effective + STRENGTH_HALF_PARAMS)
