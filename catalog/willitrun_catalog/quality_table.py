"""Measured losses of quantizations: what `quality` scales to a model's size. Add a row with its source."""

from __future__ import annotations

REFERENCE_PARAMS = 8_030_261_248
"""Meta-Llama-3-8B, on which the table was measured."""
SIZE_EXPONENT = 0.4
"""Larger models lose less: the loss falls with this power of the parameter count.

Within one source the same quantization loses, as ln(perplexity ratio): LLaMA 7B -> 13B (llama.cpp pull request 1684)
Q2_K 0.137 -> 0.108, Q3_K_S 0.089 -> 0.064, Q4_K_S 0.019 -> 0.016; Qwen2.5-Instruct 1.5B -> 14B (perplexity.md of
ThomasBaruzier's GGUF repositories) IQ1_S 2.95 -> 1.29: powers between 0.26 and 0.49.
"""

SOURCES: dict[str, str] = {
    "scoreboard": (
        "github:ikawrakow/ik_llama.cpp:examples/perplexity/README.md (llama.cpp LLaMA-3-8B scoreboard, wikitext-2)"
    ),
    "between": (
        "not measured in that table; placed between its neighbours by bits per weight and by ln(PPL ratio) of "
        "https://huggingface.co/ThomasBaruzier/Qwen2.5-1.5B-Instruct-GGUF"
    ),
    "torchao": (
        "https://github.com/pytorch/ao/pull/3394 (Meta-Llama-3.1-8B, word perplexity on wikitext: BF16 7.55, "
        "FP8 rowwise 7.62, MXFP8 7.60, NVFP4 8.44), as ln(ratio) per token at 1.3 tokens a word"
    ),
    "w4a16": (
        "https://huggingface.co/neuralmagic/Meta-Llama-3.1-8B-Instruct-quantized.w4a16 (MMLU recovery 97.9 %) "
        "and https://huggingface.co/datasets/LostGentoo/awq-quant-evals (Qwen3.5-4B AWQ: perplexity 16.77 -> "
        "18.54)"
    ),
    "w8a8": "https://huggingface.co/neuralmagic/Meta-Llama-3.1-8B-quantized.w8a8 (OpenLLM average 63.03 -> 62.71)",
    "exact": "16 bits: what the makers published",
    "trained": "the makers trained the model in this format: nothing is lost against what they published",
}

KL_DIVERGENCE: dict[str, tuple[float, str]] = {
    "F32": (0.0, "exact"),
    "BF16": (0.0, "exact"),
    "F16": (0.000551, "scoreboard"),
    "Q8_0": (0.001355, "scoreboard"),
    "Q6_K": (0.005452, "scoreboard"),
    "Q5_K_M": (0.010762, "scoreboard"),
    "Q5_K_S": (0.016595, "scoreboard"),
    "Q5_1": (0.018045, "scoreboard"),
    "Q5_0": (0.022239, "scoreboard"),
    "Q4_K_M": (0.028152, "scoreboard"),
    "Q4_K_S": (0.031951, "scoreboard"),
    "IQ4_NL": (0.035742, "scoreboard"),
    "IQ4_XS": (0.036334, "scoreboard"),
    "Q4_1": (0.071683, "scoreboard"),
    "Q4_0": (0.07194, "scoreboard"),
    "MXFP4_MOE": (0.06, "between"),
    "Q3_K_L": (0.073077, "scoreboard"),
    "Q3_K_M": (0.084358, "scoreboard"),
    "IQ3_M": (0.102534, "scoreboard"),
    "IQ3_S": (0.111278, "scoreboard"),
    "IQ3_XS": (0.138693, "scoreboard"),
    "IQ3_XXS": (0.183625, "scoreboard"),
    "Q3_K_S": (0.199821, "scoreboard"),
    "IQ2_M": (0.325989, "scoreboard"),
    "Q2_K": (0.332223, "scoreboard"),
    "Q2_K_S": (0.40336, "scoreboard"),
    "IQ2_S": (0.439197, "scoreboard"),
    "IQ2_XS": (0.54629, "scoreboard"),
    "IQ2_XXS": (0.812022, "scoreboard"),
    "IQ1_M": (1.393084, "scoreboard"),
    "IQ1_S": (2.254554, "scoreboard"),
    "FP8": (0.007, "torchao"),
    "NVFP4": (0.085, "torchao"),
    "W8A8": (0.012, "w8a8"),
    "GPTQ-INT8": (0.003, "w8a8"),
    "BNB-INT8": (0.008, "w8a8"),
    "AWQ": (0.045, "w4a16"),
    "GPTQ-INT4": (0.05, "w4a16"),
    "BNB-NF4": (0.06, "w4a16"),
}
"""Quantization to the mean Kullback-Leibler divergence of the next-token distribution from the unquantized model, in
nats over wikitext-2, and its source. Rows with an importance matrix are preferred: that is what publishers upload."""
