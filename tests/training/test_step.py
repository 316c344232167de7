"""One optimizer step: the loss against plain formulas, and what must not change it."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torch.nn import functional as F

from maxk_lightning.callbacks import RolloutCallback
from maxk_lightning.data import Builtin
from maxk_lightning.datamodule import PromptDataModule
from maxk_lightning.losses import BatchCounts, ClippedSurrogate
from maxk_lightning.module import PolicyModule
from maxk_lightning.objectives import GRPO, ExactMaxAtK, MaxAtK, Objective, OffPolicyMaxAtK
from maxk_lightning.policy import load_model
from maxk_lightning.rewards import Reward
from maxk_lightning.rollouts import TransformersEngine
from maxk_lightning.rollouts.rollout import Group, Rollout
from maxk_lightning.training.batch import to_batch
from maxk_lightning.types import Sampling
from tests.support.fakes import LengthReward, LossyReward

SAMPLING = Sampling(num_completions=6, max_new_tokens=12)
Weights = dict[str, Tensor]


def _fit(policy: str, root: Path, reward: Reward | None = None, epochs: int = 2, **options: Any) -> tuple[Weights, Any]:
    """Train on real rollouts of the random policy; return its weights and the last rollout."""
    torch.manual_seed(0)
    learning_rate = options.pop("learning_rate", 1e-2)
    callbacks = options.pop("callbacks", [])
    module = PolicyModule(
        policy=policy, optimizer=lambda params: torch.optim.SGD(params, lr=learning_rate), max_grad_norm=None, **options
    )
    datamodule = PromptDataModule(
        train=Builtin("train", limit=12), validation=None, policy=policy, prompts_per_rollout=4, num_ppo_iterations=2
    )
    callback = RolloutCallback(TransformersEngine(policy), reward or LengthReward(), SAMPLING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            default_root_dir=root,
            callbacks=[callback, *callbacks],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule)
    return dict(module.hf_weights()), datamodule.buffers["fit"].rollout


def _naive_loss(model: Any, rollout: Rollout, objective: Objective, normalisation: str, kl_coef: float) -> Tensor:
    """The loss of one on-policy step, sample by sample, from full logits."""
    num_prompts, n = len(rollout.groups), rollout.sampling.num_completions
    credits_PN = objective(rollout.rewards_PN, torch.zeros_like(rollout.rewards_PN))
    total_tokens = sum(len(completion.token_ids) for completion in rollout.completions)
    loss = torch.zeros(())
    for group, credits_N in zip(rollout.groups, credits_PN, strict=True):
        for completion, credit in zip(group.completions, credits_N, strict=True):
            logprobs_T = _logprobs(model, group, completion.token_ids)
            old_T = torch.tensor(completion.logprobs)
            weight = {
                "sequence": 1 / (num_prompts * len(completion.token_ids)),
                "token": n / total_tokens,
                "constant": 1 / (num_prompts * rollout.sampling.max_new_tokens),
            }[normalisation]
            kl_T = torch.exp(old_T - logprobs_T) - (old_T - logprobs_T) - 1
            ratio_T = torch.exp(logprobs_T - old_T) if not objective.includes_ratio else logprobs_T
            loss = loss - weight * credit.float() * ratio_T.sum() + kl_coef * weight / n * kl_T.sum()
    return loss


def _logprobs(model: Any, group: Group, completion: tuple[int, ...]) -> Tensor:
    ids = torch.tensor([group.prompt.token_ids + completion])
    logits_TV = model(ids).logits[0, len(group.prompt.token_ids) - 1 : -1]
    return F.log_softmax(logits_TV, dim=-1)[torch.arange(len(completion)), torch.tensor(completion)]


@pytest.mark.parametrize("normalisation", ["sequence", "token", "constant"])
@pytest.mark.parametrize("objective", [GRPO(), ExactMaxAtK(k=2)], ids=["advantage", "ratio credit"])
def test_the_first_step_follows_the_plain_formula(
    random_policy: str, tmp_path: Path, objective: Objective, normalisation: Any
) -> None:
    options = {"objective": objective, "normalisation": normalisation, "kl_coef": 0.05}
    torch.manual_seed(0)
    module = PolicyModule(policy=random_policy, **options)
    module.configure_model()
    _, rollout = _fit(random_policy, tmp_path, epochs=1, learning_rate=0.0, **options)
    model = load_model(random_policy)
    expected = _naive_loss(model, rollout, objective, normalisation, 0.05)
    expected.backward()

    total_tokens = sum(len(completion.token_ids) for completion in rollout.completions)
    counts = BatchCounts(num_prompts=4, num_completions=6, total_tokens=total_tokens, max_tokens=12)
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    loss, _ = module._loss(to_batch(rollout.groups), counts, 1.0)
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)
    for name, parameter in model.named_parameters():
        gradient = dict(module.policy.model.named_parameters())[name].grad  # type: ignore[union-attr]
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("objective", "normalisation"),
    [(MaxAtK(k=2, baseline="loo1"), "sequence"), (OffPolicyMaxAtK(k=2), "token"), (ExactMaxAtK(k=2), "constant")],
)
def test_micro_batches_do_not_change_the_run(
    random_policy: str, tmp_path: Path, objective: Objective, normalisation: Any
) -> None:
    # One rollout: in a second one the last bit of a weight could tip a sampled token.
    options = {"objective": objective, "normalisation": normalisation, "reward": LossyReward(), "epochs": 1}
    whole, _ = _fit(random_policy, tmp_path, **options)
    for size, max_row_tokens in ((1, None), (3, 1)):
        pieces, _ = _fit(
            random_policy, tmp_path, prompts_per_micro_batch=size, max_row_tokens=max_row_tokens, **options
        )
        for name, weight in whole.items():
            torch.testing.assert_close(pieces[name], weight, atol=1e-6, rtol=1e-4)  # float32 sums in another order
    start = load_model(random_policy).state_dict()
    assert max((whole[name] - start[name]).abs().max() for name in start) > 1e-4  # and the run did something


def test_a_batch_without_groups_has_a_loss_of_zero_and_zero_gradients_everywhere(random_policy: str) -> None:
    """What a rank computes while others have groups left: every weight takes part, nothing changes."""
    module = PolicyModule(policy=random_policy, kl_target="reference")
    module.configure_model()
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    counts = BatchCounts(num_prompts=4, num_completions=6, total_tokens=100, max_tokens=12)
    loss, sums = module._loss(to_batch([], num_completions=6), counts, 1.0)
    loss.backward()
    assert loss.item() == 0.0
    assert all(float(value) == 0.0 for value in sums.values())
    for name, parameter in module.policy.named_parameters():  # type: ignore[union-attr]
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_off_policy_credits_follow_the_drift(random_policy: str, tmp_path: Path) -> None:
    """With a large learning rate the second PPO iteration sees other ratios: exact and on-policy credits part ways."""
    exact, _ = _fit(random_policy, tmp_path, epochs=1, learning_rate=0.5, objective=ExactMaxAtK(k=2), kl_coef=0.0)
    ignoring, _ = _fit(
        random_policy,
        tmp_path,
        epochs=1,
        learning_rate=0.5,
        objective=MaxAtK(k=2, baseline="centred"),
        policy_loss=ClippedSurrogate(clip_low=1.0, clip_high=1e6),
        kl_coef=0.0,
    )
    assert max((exact[name] - ignoring[name]).abs().max() for name in exact) > 1e-4


def test_the_reference_penalty_is_the_k3_estimate_against_the_initial_policy(
    random_policy: str, tmp_path: Path
) -> None:
    module = PolicyModule(policy=random_policy, objective=GRPO(), kl_coef=1.0, kl_target="reference")
    module.configure_model()
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    _, rollout = _fit(random_policy, tmp_path, epochs=1, learning_rate=0.0)
    with torch.no_grad():
        for parameter in module.policy.parameters():  # type: ignore[union-attr]
            parameter.mul_(1.01)
    batch = to_batch(rollout.groups)
    counts = BatchCounts(num_prompts=4, num_completions=6, total_tokens=int(batch.mask_BT.sum()), max_tokens=12)
    _, sums = module._loss(batch, counts, 1.0)
    reference, current = load_model(random_policy), module.policy.model  # type: ignore[union-attr]
    expected = 0.0
    for group in rollout.groups:
        for completion in group.completions:
            ratio_T = _logprobs(reference, group, completion.token_ids) - _logprobs(
                current, group, completion.token_ids
            )
            expected += float((ratio_T.exp() - ratio_T - 1).sum().detach())
    assert float(sums["token/kl"]) == pytest.approx(expected, rel=1e-3)  # float32, small differences of log-probs
    assert expected > 0.01


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="use ScoreFunction"):
        PolicyModule(objective=ExactMaxAtK(k=2), policy_loss=ClippedSurrogate())
    with pytest.raises(ValueError, match="kl_target"):
        PolicyModule(kl_coef=0.0, kl_target="reference")
    with pytest.raises(ValueError, match="kl_coef"):
        PolicyModule(kl_coef=-1.0)
    with pytest.raises(ValueError, match="normalisation"):
        PolicyModule(normalisation="mean")  # type: ignore[arg-type]
