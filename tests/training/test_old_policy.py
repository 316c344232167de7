"""pi_old is the policy that training on a rollout began with: exactly, in every precision, for every step."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor

from maxk_lightning.commands.trainer import MaxKCLI
from maxk_lightning.losses import MaskedWeights, ScoreFunction, TruncatedWeights, token_weights
from maxk_lightning.module import PolicyModule
from maxk_lightning.objectives import ExactMaxAtK, MaxAtK
from maxk_lightning.policy import Policy, build_policy
from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.rollout import Group, Rollout, Samples
from maxk_lightning.training.batch import to_batch
from maxk_lightning.training.old_policy import OldPolicy
from maxk_lightning.training.step import StepLoss, count
from tests.training.test_step import train


@pytest.fixture(scope="module")
def samples(random_policy: str, tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Samples whose engine differs from the trainer by some precision noise."""
    sampled = train(random_policy, tmp_path_factory.mktemp("samples"), learning_rate=0.0).rollout.samples
    generator = torch.Generator().manual_seed(0)

    def noisy(group: Group) -> Group:
        completions = []
        for completion in group.completions:
            noise = 0.1 * torch.randn(len(completion.logprobs), generator=generator)
            logprobs = tuple((torch.tensor(completion.logprobs) + noise).tolist())
            completions.append(replace(completion, logprobs=logprobs))
        return replace(group, completions=completions)

    return replace(sampled, groups=[noisy(group) for group in sampled.groups])


def _step_loss(policy: Policy, samples: Samples, old: OldPolicy | None, **options: Any) -> StepLoss:
    weights = token_weights("constant")
    return StepLoss(policy, ExactMaxAtK(k=2), ScoreFunction(), weights, count(samples, Ranks()), old=old, **options)


@pytest.mark.parametrize("is_autocast", [False, True], ids=["float32", "bfloat16"])
def test_ratios_are_exactly_one_at_the_first_step(random_policy: str, samples: Samples, is_autocast: bool) -> None:
    policy, batch = build_policy(random_policy), to_batch(samples.groups)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        _, sums = _step_loss(policy, samples, OldPolicy(None))(batch)
        _, engine_sums = _step_loss(policy, samples, None)(batch)
    for tag in ("group/log_ratio_std", "token/kl"):
        assert float(sums[tag]) == 0.0
        assert float(engine_sums[tag]) > 0.01  # what the noise of the engine makes of them
    assert abs(float(sums["group/log_normaliser"])) < 1e-12  # rounding of the sum over subsets
    assert float(sums["token/engine_gap"]) / samples.num_tokens == pytest.approx(0.08, rel=0.2)  # sqrt(2 / pi) / 10


@pytest.mark.parametrize("max_tokens", [None, 1], ids=["whole groups", "split groups"])
def test_the_first_step_notes_what_later_ones_divide_by(
    random_policy: str, samples: Samples, max_tokens: int | None
) -> None:
    policy, old = build_policy(random_policy), OldPolicy(None)
    first = _step_loss(policy, samples, old, max_tokens=max_tokens)
    batches, sums = first.cut(samples, Ranks())
    assert all(abs(float(value)) < 1e-12 for tag, value in sums.items() if "log" in tag)
    initial = [first(batch)[0].detach() and first.policy(batch.rows, 1.0).logprobs_BT.detach() for batch in batches]
    assert old.knows(samples.completions)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.05)
    later = replace(first, is_old_known=True)
    later_batches, _ = later.cut(samples, Ranks())
    for batch, expected_BT in zip(later_batches, initial, strict=True):
        assert torch.equal(old.logprobs(batch), expected_BT)
        later(batch)
        assert torch.equal(old.logprobs(batch), expected_BT)  # known: noted once


@pytest.mark.parametrize("correction", [TruncatedWeights(cap=1.1), MaskedWeights(low=0.9, high=1.1)])
def test_the_engine_correction_weighs_the_tokens_of_the_policy_loss(
    random_policy: str, samples: Samples, correction: Any
) -> None:
    policy, batch, old = build_policy(random_policy), to_batch(samples.groups), OldPolicy(correction)
    old.begin(_rollout(samples, gap=0.0), age=0)
    loss, sums = _step_loss(policy, samples, old, kl_coef=0.0)(batch)
    logprobs_BT = policy(batch.rows, 1.0).logprobs_BT
    ratios_BT = (logprobs_BT - batch.behaviour_logprobs_BT).exp().detach()
    if isinstance(correction, TruncatedWeights):
        is_cut_BT, weights_BT = ratios_BT > 1.1, ratios_BT.clamp(max=1.1)
    else:
        is_cut_BT = (ratios_BT < 0.9) | (ratios_BT > 1.1)
        weights_BT = ratios_BT * ~is_cut_BT
    is_cut_BT &= batch.mask_BT
    credits_B1 = ExactMaxAtK(k=2)(samples.rewards_PN, torch.zeros_like(samples.rewards_PN)).flatten()[:, None].float()
    expected = -(weights_BT * credits_B1 * logprobs_BT * batch.mask_BT).sum() / (4 * 12)
    torch.testing.assert_close(loss, expected)
    assert int(sums["token/engine_cut_fraction"]) == int(is_cut_BT.sum()) > 0


def _rollout(samples: Samples, gap: float) -> Rollout:
    return Rollout(samples=samples, generate_s=1.0, score_s=1.0, logprob_gap=gap)


def test_auto_corrects_engines_that_compute_differently_and_rollouts_of_older_weights(samples: Samples) -> None:
    old = OldPolicy("auto")
    for gap, age, expected in ((1e-5, 0, None), (0.02, 0, TruncatedWeights()), (1e-5, 3, TruncatedWeights())):
        old.begin(_rollout(samples, gap), age)
        assert old.correction == expected
    for choice in (None, MaskedWeights()):
        old = OldPolicy(choice)
        old.begin(_rollout(samples, 0.02), 3)
        assert old.correction == choice


class Noted(Callback):
    """Keeps the old log-probs that were noted before the first step, and those after every step."""

    def __init__(self) -> None:
        self.seen: list[list[Tensor]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: PolicyModule, *_: Any) -> None:  # type: ignore[override]
        later = trainer.datamodule.buffers["fit"].steps[1:]  # type: ignore[attr-defined]
        assert pl_module.old is not None
        self.seen.append([pl_module.old.logprobs(to_batch(samples.groups)) for samples in later])


def test_steps_behind_the_first_divide_by_the_policy_before_the_first(random_policy: str, tmp_path: Path) -> None:
    """Two steps per PPO iteration: the second one's old policy is not the one that the first has changed."""
    noted = Noted()
    trained = train(
        random_policy,
        tmp_path,
        learning_rate=0.5,
        callbacks=[noted],
        module={"objective": MaxAtK(k=2)},
        data={"prompts_per_step": 2},
    )
    initial = build_policy(random_policy)
    later = trained.datamodule.buffers["fit"].steps[1:]
    expected = [initial(to_batch(samples.groups).rows, 1.0).logprobs_BT.detach() for samples in later]
    assert len(noted.seen) == 4  # two iterations of two steps
    for seen in noted.seen:
        torch.testing.assert_close(seen, expected, atol=1e-5, rtol=0.0)  # packed with other groups: rounding


def test_choices_are_read_from_the_command_line_and_contradictions_refused() -> None:
    cli = MaxKCLI(["--model.engine_correction", "MaskedWeights", "--model.engine_correction.high", "3"], run=False)
    cli.model.old.begin(_rollout(Samples(groups=[], sampling=cli.config_init["rollout"].sampling), 0.0), 0)
    assert cli.model.old.correction == MaskedWeights(high=3.0)
    assert MaxKCLI(["--model.old_logprobs", "engine"], run=False).model.old is None
    with pytest.raises(ValueError, match=r"model\.engine_correction has no effect with model\.old_logprobs: engine"):
        PolicyModule(old_logprobs="engine", engine_correction=TruncatedWeights())
