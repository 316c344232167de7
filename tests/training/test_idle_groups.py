"""Groups without credit are left out of the passes; weights and what is said of all groups stay the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor

from maxk_lightning.module import PolicyModule
from maxk_lightning.objectives import (
    GRPO,
    BonMaxMean,
    ExactMaxAtK,
    MaxAtK,
    Objective,
    OffPolicyMaxAtK,
    is_idle,
)
from maxk_lightning.rollouts.rollout import Group
from maxk_lightning.types import Problem, Score
from tests.support.training import Fit, fit

NAN = float("nan")


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (GRPO(), [True, True, False, True, False]),
        (MaxAtK(k=2), [True, True, False, True, False]),
        (MaxAtK(k=2, baseline="none"), [True, False, False, True, False]),
        (ExactMaxAtK(k=2, baseline="centred"), [True, True, False, True, False]),
        (ExactMaxAtK(k=2, baseline="loo1"), [True, True, False, True, False]),
        # With a group mean taken after weighting, constant rewards keep a credit once the policy has drifted.
        (OffPolicyMaxAtK(k=2, baseline="mean", clamp=None), [True, False, False, True, False]),
        (BonMaxMean(), [True, True, False, True, False]),
    ],
    ids=lambda value: type(value).__name__ + str(getattr(value, "baseline", "")) if not isinstance(value, list) else "",
)
def test_a_group_is_idle_where_no_ratio_could_give_it_credit(objective: Objective, expected: list[bool]) -> None:
    rewards_PN = torch.tensor(
        [[0.0] * 4, [0.5] * 4, [0.0, 0.0, 0.0, 1.0], [NAN] * 4, [0.5, 0.25, NAN, 0.25]], dtype=torch.float64
    )
    assert is_idle(objective, rewards_PN).tolist() == expected


class OftenEqual:
    """All samples of two prompts in three get the same reward; the others are told apart by their letters."""

    def score(self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]) -> list[list[Score]]:
        return [
            [self._score(problem, text) for text in group] for problem, group in zip(problems, completions, strict=True)
        ]

    def _score(self, problem: Problem, text: str) -> Score:
        reward = 0.25 if int(problem.id[-1]) % 3 else sum(map(str.islower, text)) / max(1, len(text))
        return Score(reward=reward, verdicts=())


class NoCredit:
    """Gives none to anybody."""

    includes_ratio = False

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        return torch.zeros_like(rewards_PN, dtype=torch.float64)


class Thorough(PolicyModule):
    """Computes everything for every group."""

    def idle(self, groups: Sequence[Group]) -> list[bool]:
        return [False] * len(groups)


class Passes(Callback):
    """Counts the completions that pass through the policy with gradient, and keeps the last logs."""

    def __init__(self) -> None:
        self.num_completions = 0
        self.logs: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        assert pl_module.policy is not None
        pl_module.policy.register_forward_hook(self._count)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        self.logs = {tag: float(value) for tag, value in trainer.callback_metrics.items()}

    def _count(self, module: Any, args: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            self.num_completions += len(output.logprobs_BT)


def _train(policy: str, root: Path, module_class: type[PolicyModule], **options: Any) -> tuple[Fit, Passes]:
    passes = Passes()
    options = {"objective": MaxAtK(k=2), "kl_coef": 0.0, "prompts_per_micro_batch": 1, **options}
    trained = fit(
        policy, root, reward=OftenEqual(), callbacks=[passes], module=options, module_class=module_class,
        data={"prompts_per_rollout": 6},
    )  # fmt: skip
    return trained, passes


def test_weights_are_bit_for_bit_those_of_a_run_that_computes_everything(random_policy: str, tmp_path: Path) -> None:
    lazy, few = _train(random_policy, tmp_path, PolicyModule)
    thorough, all_passes = _train(random_policy, tmp_path, Thorough)
    expected = thorough.weights
    assert all(torch.equal(weight, expected[name]) for name, weight in lazy.weights.items())
    assert 0 < few.num_completions < 0.6 * all_passes.num_completions
    for tag in ("train/zero_credit_fraction", "train/loss", "train/grad_norm", "train/reward", "train/credit_max"):
        assert few.logs[tag] == pytest.approx(all_passes.logs[tag], abs=1e-7), tag
    assert few.logs["train/zero_credit_fraction"] > 0.3
    assert few.logs["train/entropy"] > 0.0  # of the tokens that were looked at


def test_a_rollout_without_any_credit_steps_as_a_gradient_of_zero_does(random_policy: str, tmp_path: Path) -> None:
    """Adam moves on by its moments, whether zeros were computed or not."""

    lazy, few = _train(random_policy, tmp_path, PolicyModule, objective=NoCredit())
    thorough, _ = _train(random_policy, tmp_path, Thorough, objective=NoCredit())
    expected = thorough.weights
    assert all(torch.equal(weight, expected[name]) for name, weight in lazy.weights.items())
    assert few.num_completions == 0
    states: Any = lazy.trainer.optimizers[0].state
    assert all(int(state["step"]) == 4 for state in states.values())  # every weight took part in every step
    assert few.logs["train/zero_credit_fraction"] == 1.0


def test_with_a_penalty_every_group_takes_part(random_policy: str, tmp_path: Path) -> None:
    _, passes = _train(random_policy, tmp_path, PolicyModule, kl_coef=0.01)
    assert passes.num_completions == 2 * 2 * 6 * 4  # rollouts, PPO iterations, prompts, samples
