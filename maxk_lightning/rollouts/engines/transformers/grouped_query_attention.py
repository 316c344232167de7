"""Attention for sampling on a CPU: grouped queries without copies of keys and values."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "grouped_query_sdpa"


def grouped_query_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`sdpa` of transformers, except that a mask does not make it repeat keys and values for every query head.

    With a mask transformers repeats them, to keep GPU kernels fast; on a CPU the copies cost more than the attention.
    For a single token, query heads are laid out as tokens: those of a key head then share one product with the keys.
    Tensors are [rows, heads, tokens, size]; the result is [rows, tokens, heads, size].
    """
    rows, heads, tokens, size = query.shape
    is_causal = attention_mask is None and tokens > 1
    if tokens == 1:
        query = query.reshape(rows, key.shape[1], -1, size)
        attention_mask = None if attention_mask is None else attention_mask.expand(rows, 1, query.shape[2], -1)
    attended = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        is_causal=is_causal,
        scale=scaling,
        enable_gqa=True,
    )
    return attended.reshape(rows, heads, tokens, value.shape[-1]).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, grouped_query_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
