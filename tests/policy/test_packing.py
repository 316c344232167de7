"""Packed rows give exactly what separate rows give."""

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from maxk_lightning.policy import Policy, load_model
from maxk_lightning.policy.packing import PADDING, pack

PROMPTS = [(3, 4, 5, 6, 7), (8, 9)]
COMPLETIONS = [[(10, 11, 12), (13,), (), (14, 15, 16, 17)], [(18, 19), (20, 21, 22), (23,), (24, 2)]]
LIMITS = [None, 1, 9, 12, 1000]


@pytest.mark.parametrize("is_sliding", [False, True])
@pytest.mark.parametrize("max_row_tokens", LIMITS)
def test_log_probs_and_gradients_equal_those_of_separate_sequences(
    random_policy: str, max_row_tokens: int | None, is_sliding: bool
) -> None:
    """Both with attention that knows of shared prompts, and, where a model has attention of its own, with a mask."""
    config = AutoConfig.from_pretrained(random_policy)
    if is_sliding:
        config.use_sliding_window, config.sliding_window = True, 1000  # longer than anything here
        config.layer_types = ["full_attention", "sliding_attention"]
    policy = Policy(AutoModelForCausalLM.from_pretrained(random_policy, config=config, dtype=torch.float32))
    assert policy.model.config._attn_implementation == ("sdpa" if is_sliding else "shared_prompt")
    rows = pack(PROMPTS, COMPLETIONS, max_row_tokens)
    stats = policy(rows, 0.7)
    coefficients_BT = torch.randn(rows.mask_BT.shape, generator=torch.Generator().manual_seed(0)) * rows.mask_BT
    (stats.logprobs_BT * coefficients_BT).sum().backward()

    model = load_model(random_policy)
    completions = [(p, c) for p, group in zip(PROMPTS, COMPLETIONS, strict=True) for c in group]
    total = torch.zeros(())
    for row, (prompt, completion) in enumerate(completions):
        logits_TV = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / 0.7
        logprobs_T = F.log_softmax(logits_TV, dim=-1)[torch.arange(len(completion)), torch.tensor(completion).long()]
        torch.testing.assert_close(stats.logprobs_BT[row, : len(completion)], logprobs_T, atol=2e-5, rtol=1e-5)
        entropies_T = -(logits_TV.softmax(-1) * F.log_softmax(logits_TV, dim=-1)).sum(-1)
        torch.testing.assert_close(stats.entropies_BT[row, : len(completion)], entropies_T, atol=2e-5, rtol=1e-5)
        assert (stats.logprobs_BT[row, len(completion) :] == 0).all()
        total = total + (coefficients_BT[row, : len(completion)] * logprobs_T).sum()
    total.backward()
    for packed, separate in zip(policy.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(packed.grad, separate.grad, atol=2e-5, rtol=1e-3)


def test_rows_respect_the_limit_and_hold_every_token_once() -> None:
    for limit in LIMITS[1:]:
        assert limit is not None
        rows = pack(PROMPTS, COMPLETIONS, limit)
        assert rows.targets_M.tolist() == [token for group in COMPLETIONS for c in group for token in c]
        assert rows.mask_BT.sum() == len(rows.targets_M) == len(rows.sources_M)
        for segments in rows.segments_RL.tolist():
            held = [segment for segment in segments if segment != PADDING]
            assert len(held) <= limit or max(held) <= 1


def test_completions_without_a_single_token_are_empty_rows() -> None:
    rows = pack([(1, 2)], [[(), ()]])
    assert rows.mask_BT.shape == (2, 1)
    assert not rows.mask_BT.any()
    assert len(rows.targets_M) == 0
