"""Classes of tensors, as llama-quantize and the converters of llama.cpp tell them by name.

Sources: `tensor_get_category` and `tensor_allows_quantization` in `src/llama-quant.cpp`, and `prepare_tensors` in
`conversion/base.py` of https://github.com/ggml-org/llama.cpp (commit 0c1e57098).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

Category = Literal["embedding", "output", "value", "key", "query", "mixed", "down", "gate", "up", "other"]
"""What the rules know of a tensor. `value` covers fused `attn_qkv` and `attn_kv_b`; `mixed` is `attn_output`."""

_NEVER = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "attn_rel_b.weight",
    ".position_embd",
    ".patch_embd",
    ".patch_merger",
)
_NEVER_GLM5_NEXT = (
    "hc_",
    "indexer.attn_q_b",
    "indexer.attn_k",
    "indexer.proj",
    "indexer_compressor_gate",
    "indexer_compressor_ape",
    "ssm_f_a.weight",
    "ssm_f_b.weight",
    "ssm_g_a.weight",
    "ssm_g_b.weight",
    "ssm_beta.weight",
    "attn_kv_a_mqa.weight",
    "attn_k_b.weight",
    "attn_v_b.weight",
)
_CONVERTED_TO_F32 = (
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "altup_correct_coef.weight",
    "altup_predict_coef.weight",
    "indexer.proj.weight",
    "_norm.weight",
)
"""Matrices that `conversion/base.py` writes in F32 whatever the output type."""


@lru_cache(maxsize=4096)
def category(name: str) -> Category:
    """Class of a tensor by its name; the order of the tests is the program's."""
    if name == "output.weight":
        return "output"
    if name in {"token_embd.weight", "per_layer_token_embd.weight"}:
        return "embedding"
    for part, found in _CATEGORY_PARTS:
        if part in name:
            return found
    return "other"


_CATEGORY_PARTS: tuple[tuple[str, Category], ...] = (
    ("attn_qkv.weight", "value"),
    ("attn_kv_b.weight", "value"),
    ("attn_v.weight", "value"),
    ("attn_k.weight", "key"),
    ("attn_q.weight", "query"),
    ("attn_output.weight", "mixed"),
    ("ffn_up", "up"),
    ("ffn_gate", "gate"),
    ("ffn_down", "down"),
)


@lru_cache(maxsize=4096)
def quantizable(name: str, dimensions: int, architecture: str = "") -> bool:
    """Whether llama-quantize touches a tensor of this name and number of dimensions."""
    if dimensions < 2 or not name.endswith("weight"):  # noqa: PLR2004
        return False
    if any(part in name for part in _NEVER):
        return False
    return not (architecture == "glm5-next" and any(part in name for part in _NEVER_GLM5_NEXT))


@lru_cache(maxsize=4096)
def kept_type(name: str, dimensions: int, source_type: str = "BF16") -> str:
    """Find the type of a tensor that is not quantized, as the converter wrote it.

    Vectors, norms, routers and convolutions are F32; the few other matrices keep the 16-bit type of the source file.
    """
    if name.endswith("ffn_gate_tid2eid.weight"):
        return "I32"
    if dimensions < 2 or not name.endswith(".weight"):  # noqa: PLR2004
        return "F32"
    return "F32" if any(part in name for part in _CONVERTED_TO_F32) else source_type
