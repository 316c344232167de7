"""Attention in rows of one completion is attention in packed rows under a mask."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maxk_lightning.policy.packing import PADDING, PROMPT, PackedRows, pack
from maxk_lightning.policy.shared_prompt_attention import BLOCK_TOKENS, shared_prompt_attention, split_rows


def _rows(prompts: list[int], completions: list[list[int]], max_row_tokens: int | None) -> PackedRows:
    return pack(
        [[1] * length for length in prompts], [[[2] * t for t in group] for group in completions], max_row_tokens
    )


@pytest.mark.parametrize("is_split", [True, False])
@pytest.mark.parametrize(
    ("prompts", "completions", "max_row_tokens"),
    [
        ([5, 2], [[3, 1, 0, 4], [2, 3, 1, 2]], None),
        ([5, 2], [[3, 1, 0, 4], [2, 3, 1, 2]], 9),
        ([1, 40], [[7], [1]], 1),
        ([3, 9], [[BLOCK_TOKENS + 1, 4], [2 * BLOCK_TOKENS + 7, BLOCK_TOKENS]], None),
        ([4], [[0, 0]], None),
        ([], [], None),
    ],
    ids=["groups", "split groups", "one each", "several blocks", "no tokens", "no groups"],
)
def test_results_and_gradients_are_those_under_a_mask(
    prompts: list[int], completions: list[list[int]], max_row_tokens: int | None, is_split: bool
) -> None:
    rows = _rows(prompts, completions, max_row_tokens)
    segments_RL = rows.segments_RL
    generator = torch.Generator().manual_seed(0)
    num_rows, length = segments_RL.shape

    def random(heads: int) -> Tensor:
        return torch.randn(num_rows, heads, length, 8, generator=generator, dtype=torch.float64, requires_grad=True)

    query, key, value = tensors = random(4), random(2), random(2)
    is_token_RL = segments_RL != PADDING
    is_seen_RLL = (segments_RL[:, None] == PROMPT) | (segments_RL[:, None] == segments_RL[:, :, None])
    mask_R1LL = is_seen_RLL.tril()[:, None]
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_R1LL, enable_gqa=True).transpose(1, 2)
    attended, _ = shared_prompt_attention(
        nn.Module(), query, key, value, None, copies_US=rows.copies_US,
        places_RL=rows.places_RL, split=split_rows(rows) if is_split else None,
    )  # fmt: skip
    torch.testing.assert_close(attended[is_token_RL], expected[is_token_RL], atol=1e-10, rtol=1e-10)
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64) * is_token_RL[:, :, None, None]
    ours = torch.autograd.grad((attended * weights).sum(), tensors)
    theirs = torch.autograd.grad((expected * weights).sum(), tensors)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)
