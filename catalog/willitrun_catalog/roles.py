"""What a tensor is for, told from its GGUF name."""

from __future__ import annotations

from functools import lru_cache

from willitrun_catalog.model import Role


@lru_cache(maxsize=8192)
def role_of(name: str, dimensions: int) -> Role:  # noqa: PLR0911
    """Role of a tensor by its name and number of dimensions (vectors are `norm`, whatever they scale).

    Names are those of `gguf-py/gguf/constants.py` (TENSOR_NAMES) in https://github.com/ggml-org/llama.cpp.
    """
    if name == "token_embd.weight":
        return "embedding"
    if name == "output.weight":
        return "output"
    part = name.split(".", 2)[2] if name.startswith("blk.") and name.count(".") > 1 else name
    if "nextn." in part or part.startswith(("per_layer_", "altup_", "rope_", "dense_")):
        return "norm" if dimensions < 2 else "extra"  # noqa: PLR2004
    if "_exps" in part or "_chexps" in part:
        return "experts"
    if part.startswith(("ffn_gate_inp", "ffn_gate_tid2eid")):
        return "router" if dimensions > 1 else "norm"
    if dimensions < 2 or "norm" in part or not part.endswith("weight"):  # noqa: PLR2004
        return "norm"
    if part.startswith("ffn_"):
        return "ffn"
    if part.startswith(("attn_", "ssm_", "shortconv", "indexer", "cross_attn", "time_mix")):
        return "attention"
    return "extra"
