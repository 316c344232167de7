"""The proof of pushed weights: the gap by brute force, and in the precision that training computes in."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial

import pytest
import torch

from maxk_lightning.policy import Policy, load_model
from maxk_lightning.rollouts import TransformersEngine
from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.weight_sync import NUM_TEST_PROMPTS, NUM_TEST_TOKENS, Weights, WeightSync, logprob_gap
from maxk_lightning.types import Completion, Prompt, Sampling

PROMPTS = [Prompt(problem_id=str(i), token_ids=tuple(range(5, 12 + i)), seed=100 + i) for i in range(12)]
BFLOAT16 = partial(torch.autocast, "cpu", torch.bfloat16)


@pytest.fixture
def policy(random_policy: str) -> Policy:
    return Policy(load_model(random_policy))


def _logprobs(policy: Policy, prompt: Prompt, completion: Completion, temperature: float) -> torch.Tensor:
    """Log-probs of the tokens of one completion, alone in a row, by the model itself."""
    token_ids = torch.tensor([[*prompt.token_ids, *completion.token_ids]])
    with torch.no_grad():
        logits = policy.model(token_ids).logits[0, len(prompt.token_ids) - 1 : -1]
    drawn = torch.tensor(completion.token_ids).unsqueeze(-1)
    return (logits / temperature).log_softmax(-1).gather(-1, drawn).squeeze(-1)


def test_the_gap_is_that_of_tokens_and_of_completions(policy: Policy, random_policy: str) -> None:
    """Of an engine with other weights, so that there is one."""
    engine = TransformersEngine(random_policy)
    engine.load_weights(((name, 1.1 * tensor) for name, tensor in policy.model.state_dict().items()), 0)
    groups = engine.generate(PROMPTS[:5], Sampling(num_completions=3, max_new_tokens=9, temperature=0.7))
    differences = [
        torch.tensor(completion.logprobs) - _logprobs(policy, prompt, completion, 0.7)
        for prompt, group in zip(PROMPTS, groups, strict=False)
        for completion in group
    ]
    gap = logprob_gap(policy, PROMPTS[:5], groups, 0.7)
    assert gap.mean == pytest.approx(float(torch.cat(differences).abs().mean()), rel=1e-3)
    assert gap.largest == pytest.approx(float(torch.cat(differences).abs().max()), rel=1e-3)
    assert gap.of_sums == pytest.approx(float(torch.stack([d.sum().abs() for d in differences]).mean()), rel=1e-3)
    assert gap.of_sums > gap.mean > 0.01


@pytest.mark.parametrize(("context", "least", "most"), [(nullcontext, 0.0, 1e-5), (BFLOAT16, 1e-3, 0.1)])
def test_the_proof_is_made_in_the_precision_of_training(
    policy: Policy, random_policy: str, context: type[AbstractContextManager[object]], least: float, most: float
) -> None:
    sync = WeightSync(TransformersEngine(random_policy), max_logprob_gap=0.2)
    named_tensors = lambda: iter(policy.model.state_dict().items())  # noqa: E731
    weights = Weights(policy=policy, named_tensors=named_tensors, step=3, forward_context=context)
    assert sync.refresh(weights, PROMPTS, Sampling(max_new_tokens=100), Ranks())
    assert least <= sync.gap.mean <= most


def test_the_proof_samples_eight_prompts_and_draws_no_global_randomness(policy: Policy, random_policy: str) -> None:
    asked = []

    class Noting(TransformersEngine):
        def generate(self, prompts, sampling):  # type: ignore[no-untyped-def]
            asked.append((len(prompts), sampling.max_new_tokens, sampling.num_completions))
            return super().generate(prompts, sampling)

    sync = WeightSync(Noting(random_policy), max_logprob_gap=0.2)
    weights = Weights(policy=policy, named_tensors=lambda: iter(policy.model.state_dict().items()), step=0)
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    assert sync.refresh(weights, PROMPTS, Sampling(max_new_tokens=100), Ranks())
    assert asked == [(NUM_TEST_PROMPTS, NUM_TEST_TOKENS, 1)] == [(8, 64, 1)]
    assert torch.equal(torch.rand(2), expected)
