"""Dense transformers. Checked against `src/models/*.cpp` of https://github.com/ggml-org/llama.cpp (0c1e57098)."""

from __future__ import annotations

from willitrun_estimator.tensors.family import (
    MIDDLE_NORMS,
    ONE_NORM,
    POST_NORMS,
    SANDWICH_NORMS,
    Family,
)

FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral3": Family(),
    "mistral4": Family(),
    "minicpm": Family(),
    "internlm2": Family(),
    "nanbeige": Family(),
    "exaone": Family(),
    "smollm3": Family(),
    "granite": Family(),
    "ernie4_5": Family(),
    "arcee": Family(),
    "deci": Family(),
    "gemma": Family(),
    "gemma2": Family(norms=SANDWICH_NORMS),
    "gemma3": Family(norms=SANDWICH_NORMS, qk_norm="head"),
    "gemma-embedding": Family(norms=SANDWICH_NORMS, qk_norm="head"),
    "qwen2": Family(qkv_bias=True),
    "qwen2vl": Family(qkv_bias=True),
    "qwen3": Family(qk_norm="head"),
    "qwen3vl": Family(qk_norm="head"),
    "hunyuan-dense": Family(qk_norm="head"),
    "apertus": Family(qk_norm="head"),
    "seed_oss": Family(norms=MIDDLE_NORMS),
    "olmo2": Family(norms=POST_NORMS, qk_norm="full"),
    "exaone4": Family(norms=POST_NORMS, qk_norm="head"),
    "muse-glimmer": Family(norms=SANDWICH_NORMS, qk_norm="head", attention_gate="value"),
    "phi3": Family(fused_qkv=True, joined_gate_up=True),
    "chatglm": Family(fused_qkv=None, joined_gate_up=True),
    "glm4": Family(norms=SANDWICH_NORMS, joined_gate_up=True),
    "command-r": Family(norms=ONE_NORM, qk_norm_kind="each"),
    "cohere2": Family(norms=ONE_NORM),
    "phi2": Family(norms=ONE_NORM, norm_bias=True, qkv_bias=True, output_bias=True, ffn_bias=True, head_bias=True),
    "starcoder2": Family(norm_bias=True, qkv_bias=True, output_bias=True, ffn_bias=True),
    "nemotron": Family(norm_bias=True),
}
