"""Attention for sampling is attention with keys and values repeated for every query head."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from maxk_lightning.rollouts.engines.transformers.grouped_query_attention import grouped_query_attention


@pytest.mark.parametrize("is_masked", [True, False])
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_it_is_attention_with_repeated_keys(num_tokens: int, is_masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, num_tokens, 6, 8, generator=generator, dtype=torch.float64).transpose(1, 2)
    key, value = (torch.randn(3, 2, 5, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    is_visible = torch.ones(num_tokens, 5, dtype=torch.bool).tril(5 - num_tokens).expand(3, 1, -1, -1).clone()
    if is_masked:
        is_visible[1, :, :, 0] = False  # padded on the left
        is_visible[1, :, 0, -1] = is_visible[1, :, 0, 0] = True  # no row may be empty
    repeated = (tensor.repeat_interleave(3, dim=1) for tensor in (key, value))
    expected = F.scaled_dot_product_attention(query, *repeated, attn_mask=is_visible).transpose(1, 2)
    attended, _ = grouped_query_attention(nn.Module(), query, key, value, is_visible if is_masked else None)
    torch.testing.assert_close(attended, expected, atol=1e-10, rtol=1e-10)
