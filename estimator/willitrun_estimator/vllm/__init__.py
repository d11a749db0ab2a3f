"""vLLM on the GPUs at hand: memory, cache, parallelism, kernels, batching and the plan made of them."""
