"""Which quantization a checkpoint has, from `quantization_config` of its config.json.

Sources: docs/source/en/main_classes/quantization.md of https://github.com/huggingface/transformers, the schemes of
https://github.com/vllm-project/compressed-tensors, `hf_quant_config.json` of https://github.com/NVIDIA/TensorRT-Model-Optimizer.
"""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]

_BYTE = 8
_NIBBLE = 4
_ALGORITHMS = (
    ("mxfp4", "MXFP4", _NIBBLE),
    ("fp4", "NVFP4", _NIBBLE),
    ("fp8", "FP8", _BYTE),
    ("awq", "AWQ", None),
)


def quantization(config: Fields, extra: Fields | None = None) -> tuple[str | None, int | None]:
    """Name the format and give the bits of a packed weight; (None, None) for a checkpoint of plain floats.

    `extra` is the content of `hf_quant_config.json`, where older exports keep it.
    """
    found = config.get("quantization_config") or _text_part(config).get("quantization_config")
    if not isinstance(found, dict):
        found = (extra or {}).get("quantization")
        if not isinstance(found, dict):
            return None, None
    method = str(found.get("quant_method") or found.get("quant_algo") or "").lower().replace("_", "-")
    bits = _bits(found.get("bits") or found.get("w_bit"))
    if method == "compressed-tensors":
        return _compressed(found)
    if method in {"gptq", "auto-round", "autoround"}:
        return ("GPTQ-INT8" if bits == _BYTE else "GPTQ-INT4"), bits
    if method == "bitsandbytes":
        return ("BNB-INT8", _BYTE) if found.get("load_in_8bit") else ("BNB-NF4", _NIBBLE)
    algorithm = str(found.get("quant_algo") or method).lower()
    for mark, name, width in _ALGORITHMS:
        if mark in algorithm:
            return name, width or bits
    return (method or algorithm or "unknown").upper(), bits


def _bits(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _BYTE else _NIBBLE


def _compressed(found: Fields) -> tuple[str, int]:
    groups = found.get("config_groups")
    schemes = [group for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
    weights: Fields = next((scheme["weights"] for scheme in schemes if isinstance(scheme.get("weights"), dict)), {})
    activations = next((scheme["input_activations"] for scheme in schemes if scheme.get("input_activations")), None)
    bits = _bits(weights.get("num_bits"))
    if weights.get("type") == "float":
        if bits == _BYTE:
            return "FP8", bits
        return ("MXFP4" if "mxfp4" in str(found.get("format")) else "NVFP4"), bits
    if bits == _BYTE:
        return ("W8A8" if activations else "GPTQ-INT8"), bits
    return "GPTQ-INT4", bits


def _text_part(config: Fields) -> Fields:
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else {}
