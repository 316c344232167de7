"""One optimizer step: the loss against plain formulas, and what must not change it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from maxk_lightning.losses import ClippedSurrogate, PolicyLoss, ScoreFunction, StepCounts, token_weights
from maxk_lightning.module import PolicyModule
from maxk_lightning.objectives import (
    GRPO,
    ExactMaxAtK,
    MaxAtK,
    Objective,
    OffPolicyMaxAtK,
    SetAdvantage,
    Staged,
    WeightedObjectives,
    objective_at,
)
from maxk_lightning.policy import Policy, build_policy, load_model
from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.rollout import Group, Samples
from maxk_lightning.training.batch import to_batch
from maxk_lightning.training.reference import Reference
from maxk_lightning.training.step import StepLoss, count
from maxk_lightning.types import Sampling
from tests.support.fakes import LossyReward
from tests.support.training import Fit, fit

SAMPLING = Sampling(num_completions=6, max_new_tokens=12)


def sgd(learning_rate: float = 1e-2) -> Callable[[Any], torch.optim.Optimizer]:
    """Plain SGD, so that weights differ as gradients do."""
    return partial(torch.optim.SGD, lr=learning_rate)


def train(policy: str, root: Path, learning_rate: float = 1e-2, **options: Any) -> Fit:
    """One rollout of four prompts, two PPO iterations, without clipping of gradients."""
    module = {"optimizer": sgd(learning_rate), "max_grad_norm": None, **options.pop("module", {})}
    return fit(policy, root, **{"epochs": 1, "sampling": SAMPLING, **options}, module=module)


@pytest.fixture(scope="module")
def samples(random_policy: str, tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Samples of the random policy as it is."""
    return train(random_policy, tmp_path_factory.mktemp("samples"), learning_rate=0.0).rollout.samples


def _step_loss(policy: Policy, samples: Samples, objective: Objective, **options: Any) -> StepLoss:
    policy_loss: PolicyLoss = ScoreFunction() if objective.includes_ratio else ClippedSurrogate()
    weights = token_weights(options.pop("normalisation", "constant"))
    counts = count(samples, Ranks())
    return StepLoss(policy, objective, policy_loss, weights, counts, **options)


def _naive_loss(model: Any, samples: Samples, objective: Objective, normalisation: str, kl_coef: float) -> Tensor:
    """The loss of one on-policy step, sample by sample, from full logits."""
    num_prompts, n = len(samples.groups), len(list(samples.completions)) / len(samples.groups)
    credits_PN = objective(samples.rewards_PN, torch.zeros_like(samples.rewards_PN))
    total_tokens = sum(len(completion.token_ids) for completion in samples.completions)
    loss = torch.zeros(())
    for group, credits_N in zip(samples.groups, credits_PN, strict=True):
        for completion, credit in zip(group.completions, credits_N[: len(group.completions)], strict=True):
            logprobs_T = _logprobs(model, group, completion.token_ids)
            old_T = torch.tensor(completion.logprobs)
            weight = {
                "sequence": 1 / (num_prompts * len(completion.token_ids)),
                "token": n / total_tokens,
                "constant": 1 / (num_prompts * samples.sampling.max_new_tokens),
            }[normalisation]
            kl_T = torch.exp(old_T - logprobs_T) - (old_T - logprobs_T) - 1
            ratio_T = torch.exp(logprobs_T - old_T) if not objective.includes_ratio else logprobs_T
            loss = loss - weight * credit.float() * ratio_T.sum() + kl_coef * weight / n * kl_T.sum()
    return loss


def _logprobs(model: Any, group: Group, completion: tuple[int, ...]) -> Tensor:
    ids = torch.tensor([group.prompt.token_ids + completion])
    logits_TV = model(ids).logits[0, len(group.prompt.token_ids) - 1 : -1]
    return F.log_softmax(logits_TV, dim=-1)[torch.arange(len(completion)), torch.tensor(completion)]


@pytest.mark.parametrize("is_uneven", [False, True], ids=["even", "uneven"])
@pytest.mark.parametrize("normalisation", ["sequence", "token", "constant"])
@pytest.mark.parametrize("objective", [GRPO(), ExactMaxAtK(k=2)], ids=["advantage", "ratio credit"])
def test_the_first_step_follows_the_plain_formula(
    random_policy: str, samples: Samples, objective: Objective, normalisation: str, is_uneven: bool
) -> None:
    """Also where groups differ in size: each one's credits hold the 1/n of its own."""
    if is_uneven:
        smaller = [
            replace(group, completions=group.completions[: 3 + index % 2], scores=group.scores[: 3 + index % 2])
            for index, group in enumerate(samples.groups)
        ]
        samples = replace(samples, groups=smaller)
    model, policy = load_model(random_policy), build_policy(random_policy)
    expected = _naive_loss(model, samples, objective, normalisation, 0.05)
    expected.backward()
    step_loss = _step_loss(policy, samples, objective, normalisation=normalisation, kl_coef=0.05)
    (batch,), sums = step_loss.cut(samples, Ranks())
    assert not any(float(value) for value in sums.values())
    loss, _ = step_loss(batch)
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)
    for name, parameter in model.named_parameters():
        gradient = dict(policy.model.named_parameters())[name].grad
        torch.testing.assert_close(gradient, parameter.grad, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("objective", "normalisation"),
    [
        (OffPolicyMaxAtK(k=2), "token"),  # the quick tests take the other normalisations in test_micro_batches.py
        pytest.param(MaxAtK(k=2, baseline="loo1"), "sequence", marks=pytest.mark.slow),
        pytest.param(ExactMaxAtK(k=2), "constant", marks=pytest.mark.slow),
    ],
)
def test_micro_batches_do_not_change_the_run(
    random_policy: str, tmp_path: Path, objective: Objective, normalisation: str
) -> None:
    # One rollout: in a second one the last bit of a weight could tip a sampled token.
    options = {"objective": objective, "normalisation": normalisation, "entropy_coef": 0.05}
    whole = train(random_policy, tmp_path, reward=LossyReward(), module=options).weights
    for size, max_row_tokens in ((1, None), (3, 1)):
        sizes = {"prompts_per_micro_batch": size, "max_row_tokens": max_row_tokens}
        cut = train(random_policy, tmp_path, reward=LossyReward(), module={**options, **sizes}).weights
        for name, weight in whole.items():
            torch.testing.assert_close(cut[name], weight, atol=1e-6, rtol=1e-4)  # float32 sums in another order
    start = load_model(random_policy).state_dict()
    assert max((whole[name] - start[name]).abs().max() for name in start) > 1e-4  # and the run did something


def test_a_batch_without_groups_has_a_loss_of_zero_and_zero_gradients_everywhere(random_policy: str) -> None:
    """What a rank computes while others have groups left: every weight takes part, nothing changes."""
    policy = build_policy(random_policy)
    counts = StepCounts(num_prompts=4, num_completions=6, total_tokens=100, max_tokens=12)
    reference = Reference(build_policy(random_policy), has_adapters=False)
    weights = token_weights("constant")
    step_loss = StepLoss(
        policy, OffPolicyMaxAtK(k=4), ScoreFunction(), weights, counts, kl_coef=0.1, reference=reference
    )
    loss, sums = step_loss(to_batch([], num_completions=6))
    loss.backward()
    assert loss.item() == 0.0
    assert all(float(value) == 0.0 for value in sums.values())
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_off_policy_credits_follow_the_drift(random_policy: str, tmp_path: Path) -> None:
    """With a large learning rate the second PPO iteration sees other ratios: exact and on-policy credits part ways."""
    exact = train(random_policy, tmp_path, 0.5, module={"objective": ExactMaxAtK(k=2), "kl_coef": 0.0}).weights
    loss = ClippedSurrogate(clip_low=1.0, clip_high=1e6)
    on_policy = {"objective": MaxAtK(k=2, baseline="centred"), "policy_loss": loss, "kl_coef": 0.0}
    ignoring = train(random_policy, tmp_path, 0.5, module=on_policy).weights
    assert max((exact[name] - ignoring[name]).abs().max() for name in exact) > 1e-4


def test_the_reference_penalty_is_the_k3_estimate_against_the_initial_policy(
    random_policy: str, samples: Samples
) -> None:
    initial = build_policy(random_policy)
    policy = build_policy(random_policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.01)
    reference = Reference(initial, has_adapters=False)
    step_loss = _step_loss(policy, samples, GRPO(), kl_coef=1.0, reference=reference)
    _, sums = step_loss(to_batch(samples.groups))
    expected = 0.0
    for group in samples.groups:
        for completion in group.completions:
            ours = _logprobs(policy.model, group, completion.token_ids)
            ratio_T = _logprobs(initial.model, group, completion.token_ids) - ours
            expected += float((ratio_T.exp() - ratio_T - 1).sum().detach())
    assert float(sums["token/kl"]) == pytest.approx(expected, rel=1e-3)  # float32, small differences of log-probs
    assert expected > 0.01


def test_a_mixture_is_diagnosed_with_its_largest_k(random_policy: str, samples: Samples) -> None:
    policy = build_policy(random_policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.05)
    parts: list[Objective] = [ExactMaxAtK(k=2), ExactMaxAtK(k=4)]
    fractions = [
        _step_loss(policy, samples, objective)(to_batch(samples.groups))[1]["group/effective_subsets_fraction"]
        for objective in (WeightedObjectives(parts, [0.5, 0.5]), *parts)
    ]
    assert fractions[0] == fractions[2] != fractions[1]


def test_the_power_of_the_others_ratios_is_logged(random_policy: str, samples: Samples) -> None:
    """1 where the policy is the one that sampled; below it where it has drifted."""
    policy, tempering = build_policy(random_policy), []
    for _ in range(2):
        step_loss = _step_loss(policy, samples, SetAdvantage(k=2))
        _, sums = step_loss(to_batch(samples.groups))
        tempering.append(step_loss.means(sums, Ranks())["tempering"])
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(1.3)
    assert tempering[0] == pytest.approx(1.0)
    assert 0.0 < tempering[1] < 0.9
    assert _step_loss(policy, samples, SetAdvantage(k=2))(to_batch([], num_completions=6))[0].item() == 0.0


def test_the_power_of_the_others_ratios_is_logged_for_parts_too(random_policy: str, samples: Samples) -> None:
    policy = build_policy(random_policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.3)

    def logged(objective: Objective) -> float | None:
        step_loss = _step_loss(policy, samples, objective)
        return step_loss.means(step_loss(to_batch(samples.groups))[1], Ranks()).get("tempering")

    two, three = SetAdvantage(k=2), SetAdvantage(k=3)
    alphas = [float(logged(objective) or 0.0) for objective in (two, three)]
    assert min(alphas) > 0.0
    assert alphas[0] != alphas[1]
    assert logged(WeightedObjectives([two, MaxAtK(k=2)], [0.5, 0.5])) == alphas[0]
    assert logged(objective_at(Staged([WeightedObjectives([three, GRPO()], [1.0, 1.0])], [0.0]), 0.5)) == alphas[1]
    assert logged(WeightedObjectives([two, three], [0.5, 0.5])) == pytest.approx(sum(alphas) / 2)
    assert logged(WeightedObjectives([GRPO(), MaxAtK(k=2)], [0.5, 0.5])) is None


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="use ScoreFunction"):
        PolicyModule(objective=ExactMaxAtK(k=2), policy_loss=ClippedSurrogate())
    with pytest.raises(ValueError, match="kl_target"):
        PolicyModule(kl_coef=0.0, kl_target="reference")
    with pytest.raises(ValueError, match="kl_coef"):
        PolicyModule(kl_coef=-1.0)
    with pytest.raises(ValueError, match="normalisation"):
        PolicyModule(normalisation="mean")  # type: ignore[arg-type]
