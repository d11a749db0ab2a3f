"""Models with recurrent mixers. Checked against `src/models/*.cpp` of llama.cpp (0c1e57098)."""

from __future__ import annotations

from willitrun_estimator.tensors.family import MIDDLE_NORMS, ONE_NORM, Family

FAMILIES: dict[str, Family] = {
    "mamba": Family(norms=ONE_NORM),
    "mamba2": Family(norms=ONE_NORM),
    "jamba": Family(inner_norms=True),
    "granitehybrid": Family(),
    # The last norm of these files bears the name of one that elsewhere follows the token table.
    "lfm2": Family(qk_norm="head", last_norm="token_embd_norm"),
    "lfm2moe": Family(qk_norm="head", router_bias=True, last_norm="token_embd_norm"),
    "kimi-linear": Family(router_bias=True),
    "qwen3next": Family(
        norms=MIDDLE_NORMS,
        qk_norm="head",
        gated_query=True,
        shared_gate=True,
        joined_beta=True,
    ),
    "qwen35": Family(norms=MIDDLE_NORMS, qk_norm="head", gated_query=True),
    "qwen35moe": Family(norms=MIDDLE_NORMS, qk_norm="head", gated_query=True, shared_gate=True),
}
