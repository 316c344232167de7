"""What vLLM holds on a GPU beside its weights and its KV cache, estimated from the description of the policy.

Read in vLLM 0.32: `GPUModelRunner.profile_run`, `gpu/sample/penalties.py`, `compilation/cuda_graph.py`.
"""

from typing import Any

import torch

CUDA_GRAPHS_BYTES = 2**30
"An assumption: graphs for all batch sizes up to 512, with their memory pool; 0.5 to 1 GiB."
SAMPLER_COPIES = 3
"float32 tensors of the logits that live at once: logits, log-probs, and one in which noise is drawn."


def prefill_bytes(config: Any, dtype: torch.dtype, num_tokens: int, num_rows: int) -> int:
    """Estimate the peak bytes of a forward pass over `num_tokens` tokens, of which `num_rows` get logits.

    In the MLP of a layer: both inputs of its product and the product, beside input, output and residual of the layer.
    """
    experts = getattr(config, "num_experts_per_tok", None) or 1
    width = experts * (getattr(config, "moe_intermediate_size", None) or config.intermediate_size)
    activations = num_tokens * (3 * width + 4 * config.hidden_size) * dtype.itemsize
    return int(activations + SAMPLER_COPIES * 4 * num_rows * config.vocab_size)


def fixed_bytes(config: Any, num_rows: int, has_graphs: bool) -> int:
    """Estimate the bytes of token counts for penalties, which vLLM allocates in any case, and of CUDA graphs."""
    return int(4 * num_rows * config.vocab_size) + (CUDA_GRAPHS_BYTES if has_graphs else 0)
