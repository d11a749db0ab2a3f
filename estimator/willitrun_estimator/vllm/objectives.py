"""What each operating mode wants of a server, and which engine serves it better.

| mode | objective (larger is better) |
| --- | --- |
| `balanced` | geometric mean of one user's rate and the aggregate rate at 4 users |
| `interactive` | 1 / seconds until one user has read the first 100 tokens: time to the first token + 100 steps |
| `light-api` | aggregate rate at 8 users x min(1, each one's rate / target) x min(1, target / time to first token) |
| `scale-out` | aggregate rate at the largest concurrency that keeps both targets, at least one |

Targets are `--min-decode` and `--max-ttft`; without them 8 tokens/s each (fast reading: 300 words a minute at 0.75
words a token are 6.7) and 5 s. Both engines are judged on their `Serving` curves, so the comparison is engine-neutral.
"""

from __future__ import annotations

from msgspec import Struct

from willitrun_estimator.plan import EngineChoice, Serving
from willitrun_estimator.request import Mode, Request

CONCURRENCY = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TARGET_DECODE = 8.0
TARGET_TTFT_S = 5.0
READ_TOKENS = 100
BALANCED_USERS = 4
LIGHT_API_USERS = 8
TIE = 0.1
"""A gain below a tenth is inside both predictions' spread: the simpler engine stays."""


class Targets(Struct, frozen=True, kw_only=True):
    """What every user must get."""

    decode_tokens_per_s: float = TARGET_DECODE
    ttft_s: float = TARGET_TTFT_S


def targets(request: Request) -> Targets:
    """Give the user's targets, or the defaults."""
    return Targets(decode_tokens_per_s=request.min_decode or TARGET_DECODE, ttft_s=request.max_ttft or TARGET_TTFT_S)


def at(serving: Serving, users: int) -> tuple[float, float]:
    """Give aggregate rate and time to first token at a concurrency, by the nearest lower point of the curve."""
    position = max((i for i, c in enumerate(serving.concurrency) if c <= users), default=0)
    return serving.output_tokens_per_s[position], serving.ttft_s[position]


def keeps(serving: Serving, position: int, wanted: Targets) -> bool:
    """Tell whether every user gets the targets at one point of the curve."""
    each = serving.output_tokens_per_s[position] / serving.concurrency[position]
    return each >= wanted.decode_tokens_per_s and serving.ttft_s[position] <= wanted.ttft_s


def most_users(serving: Serving, wanted: Targets) -> int:
    """Give the largest concurrency of a curve that keeps the targets, at least one."""
    return max((c for i, c in enumerate(serving.concurrency) if keeps(serving, i, wanted)), default=1)


def objective(mode: Mode, serving: Serving, wanted: Targets) -> float:
    """Value a serving curve under a mode."""
    single, ttft = at(serving, 1)
    if mode == "interactive":
        return 1 / (ttft + READ_TOKENS / single)
    if mode == "light-api":
        rate, wait = at(serving, LIGHT_API_USERS)
        each = rate / LIGHT_API_USERS
        return rate * min(1.0, each / wanted.decode_tokens_per_s) * min(1.0, wanted.ttft_s / wait)
    if mode == "scale-out":
        kept = [i for i in range(len(serving.concurrency)) if keeps(serving, i, wanted)]
        return max((serving.output_tokens_per_s[i] for i in kept), default=single * single / wanted.decode_tokens_per_s)
    rate, _ = at(serving, BALANCED_USERS)
    return float((single * rate) ** 0.5)


def choose_engine(mode: Mode, vllm: Serving | None, llama_cpp: Serving | None, wanted: Targets) -> EngineChoice | None:
    """Say which engine serves a mode better on this machine; None when neither serves."""
    if vllm is None and llama_cpp is None:
        return None
    if llama_cpp is None:
        return EngineChoice(engine="vllm", gain=1.0, reason="llama.cpp cannot hold this model here")
    if vllm is None:
        return EngineChoice(engine="llama.cpp", gain=1.0, reason="vLLM does not start with this model here")
    ours, theirs = objective(mode, vllm, wanted), objective(mode, llama_cpp, wanted)
    users = {"interactive": 1, "balanced": BALANCED_USERS, "light-api": LIGHT_API_USERS}.get(mode)
    if users is None:
        users = most_users(vllm if ours > theirs else llama_cpp, wanted)
    rates = f"at {users} users" if users > 1 else "for one user"
    if ours > theirs * (1 + TIE):
        return EngineChoice(
            engine="vllm",
            gain=ours / theirs - 1,
            reason=f"vLLM gives {at(vllm, users)[0]:.0f} tokens/s {rates}, llama.cpp {at(llama_cpp, users)[0]:.0f}",
        )
    reason = f"llama.cpp gives {at(llama_cpp, users)[0]:.0f} tokens/s {rates}, vLLM {at(vllm, users)[0]:.0f}"
    if ours > theirs:
        reason += f"; less than {TIE:.0%} is inside the spread of both predictions"
    return EngineChoice(engine="llama.cpp", gain=max(0.0, theirs / ours - 1), reason=reason)
