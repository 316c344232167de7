"""A step that is not finite never reaches the weights; drift is told once."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from maxk_lightning.module import PolicyModule
from maxk_lightning.objectives import MaxAtK
from maxk_lightning.rollouts.rollout import Samples
from maxk_lightning.training.guard import StepGuard
from tests.support.training import Fit, fit


class Spoiling:
    """On-policy max@k whose credits overflow at chosen steps."""

    includes_ratio = False

    def __init__(self, bad_steps: set[int]) -> None:
        self.bad_steps = bad_steps
        self.step = 0

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        credits_PN = MaxAtK(k=2)(rewards_PN, log_ratios_PN)
        return credits_PN * float("inf") if self.step in self.bad_steps else credits_PN


class Telling(PolicyModule):
    """Tells its objective which step it is at; between steps groups are asked for their credit, too."""

    num_steps = 0

    def training_step(self, samples: Samples, batch_idx: int) -> None:
        objective: Any = self.objective
        self.num_steps += 1
        objective.step = self.num_steps
        super().training_step(samples, batch_idx)
        objective.step = 0


class Trace(Callback):
    """Notes weights, moments and what was logged after every step."""

    def __init__(self) -> None:
        self.weights: list[list[Tensor]] = []
        self.moments: list[list[Tensor]] = []
        self.skipped: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: PolicyModule, *_: Any) -> None:  # type: ignore[override]
        self.weights.append([parameter.detach().clone() for parameter in pl_module.parameters()])
        states: Any = trainer.optimizers[0].state
        self.moments.append([state["exp_avg"].clone() for state in states.values()])
        self.skipped.append(float(trainer.callback_metrics["train/skipped_steps"]))


def _fit(policy: str, root: Path, bad_steps: set[int], *callbacks: Callback, ckpt_path: Path | None = None) -> Fit:
    module = {"objective": Spoiling(bad_steps), "kl_coef": 0.01}
    return fit(policy, root, callbacks=callbacks, module=module, module_class=Telling, ckpt_path=ckpt_path)


def test_a_step_that_is_not_finite_changes_nothing_and_training_goes_on(random_policy: str, tmp_path: Path) -> None:
    trace = Trace()
    _fit(random_policy, tmp_path, {2}, trace)
    assert trace.skipped == [0.0, 1.0, 0.0, 0.0]
    for before, after in ((trace.weights[0], trace.weights[1]), (trace.moments[0], trace.moments[1])):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(trace.weights[1], trace.weights[2], strict=True))
    assert all(weight.isfinite().all() for weight in trace.weights[-1])


@pytest.mark.parametrize("first", [1, 2], ids=["amid a rollout", "at its end"])
def test_three_in_a_row_stop_the_run_with_a_checkpoint_that_goes_on(
    random_policy: str, tmp_path: Path, first: int
) -> None:
    saving = ModelCheckpoint(tmp_path, save_top_k=0, every_n_epochs=100)
    with pytest.raises(RuntimeError, match=r"3 optimizer steps in a row was not finite.*last\.ckpt, with a smaller"):
        _fit(random_policy, tmp_path, {first, first + 1, first + 2}, saving)
    assert (tmp_path / "last.ckpt").exists()
    trace = Trace()
    _fit(random_policy, tmp_path, set(), trace, ckpt_path=tmp_path / "last.ckpt")
    assert len(trace.skipped) == 4 - (first + 2)


@pytest.mark.parametrize(("includes_ratio", "num_warnings"), [(True, 1), (False, 0)])
def test_drift_is_told_once_and_only_where_it_matters(
    caplog: pytest.LogCaptureFixture, includes_ratio: bool, num_warnings: int
) -> None:
    guard = StepGuard(includes_ratio=includes_ratio)
    with caplog.at_level(logging.WARNING, logger="maxk_lightning"):
        for spread in (0.6, 0.7, 0.2, 0.6, 0.6):
            guard.watch_drift({"log_ratio_std": spread})
        assert not caplog.records
        for spread in (0.6, 0.7, 0.8, 0.9, 0.2, 0.6, 0.7, 0.8):
            guard.watch_drift({"log_ratio_std": spread})
    assert len(caplog.records) == num_warnings
    assert all("model.policy_loss: CISPO" in record.getMessage() for record in caplog.records)
