"""Best checkpoint, early stopping and schedules that wait for a metric."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from maxk_lightning.schedules import WarmupCosine
from maxk_lightning.training.guard import NUM_WITHOUT_CREDIT, StepGuard
from tests.support.runs import scalars
from tests.support.tiny_run import run

ADAM = {"model.optimizer": "torch.optim.Adam", "model.optimizer.lr": 0.03}
PLATEAU = {
    "model.lr_scheduler": "lightning.pytorch.cli.ReduceLROnPlateau",
    "model.lr_scheduler.monitor": "val/max_at_k/4",
    "model.lr_scheduler.mode": "max",
    "model.lr_scheduler.patience": 0,
}
STOPPING = "[{class_path: EarlyStopping, init_args: {monitor: val/reward}}]"


def refusal(root: Path, policy: str, capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    with pytest.raises(SystemExit):
        run("fit", root, policy, **options)
    return capsys.readouterr().err


def test_monitor_alone_keeps_the_best_validation(random_policy: str, tmp_path: Path) -> None:
    options = {"checkpoint.monitor": "val/max_at_k/1", "trainer.max_epochs": 4, "trainer.check_val_every_n_epoch": 2}
    run("fit", tmp_path, random_policy, **ADAM, **options, **{"trainer.limit_val_batches": 1.0})
    seen = scalars(tmp_path)["val/max_at_k/1"]
    (kept,) = (tmp_path / "checkpoints").glob("epoch*.ckpt")
    best = max(seen.values())
    assert len(set(seen.values())) == len(seen) == 2, "the test tells nothing"
    saved = torch.load(kept, weights_only=True)
    assert seen[saved["global_step"] - 1] == best
    state = next(state for name, state in saved["callbacks"].items() if "RolloutCheckpoint" in name)
    assert float(state["best_model_score"]) == pytest.approx(best)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"checkpoint.monitor": "val/max_at_k/8"}, "val/max_at_k/8, which is not logged; there are val/reward"),
        ({"checkpoint.monitor": "val/reward", "checkpoint.mode": "min"}, "checkpoint.mode is min"),
        ({**PLATEAU, "model.lr_scheduler.mode": "min"}, "model.lr_scheduler.mode is min"),
        ({**PLATEAU, "model.lr_scheduler.monitor": "train/loss"}, "must be a val/ metric"),
        (
            {"model.lr_scheduler": "torch.optim.lr_scheduler.ReduceLROnPlateau"},
            "lightning.pytorch.cli.ReduceLROnPlateau",
        ),
        (
            {"trainer.callbacks": "[{class_path: EarlyStopping, init_args: {monitor: val/reward}}]"},
            "EarlyStopping.mode",
        ),
    ],
)
def test_waiting_for_nothing_or_for_the_worst_is_refused(
    options: dict[str, Any], sentence: str, random_policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in refusal(tmp_path, random_policy, capsys, **options)


def upper(completions, **columns):  # type: ignore[no-untyped-def]
    return [sum(map(str.isupper, text)) / max(1, len(text)) for text in completions]


def telling(completions, log_metric, **columns):  # type: ignore[no-untyped-def]
    log_metric("longest", max(map(len, completions)))
    return [float(len(text)) for text in completions]


UPPER, TELLING = (f"tests.shell.test_monitors.{name}" for name in ("upper", "telling"))
TEST_REWARD = "maxk_lightning.rewards.UnitTestReward"
PARTS = {
    "rollout.reward": TEST_REWARD,
    "rollout.rewards": f"[{UPPER}, {{reward: {TELLING}, weight: -0.1, name: length}}]",
}


@pytest.mark.parametrize(
    ("rewards", "monitor"),
    [
        pytest.param(PARTS, "val/rewards/upper", marks=pytest.mark.slow),
        pytest.param(PARTS, "val/rewards/length_std", marks=pytest.mark.slow),
        (PARTS, "val/rewards/longest"),
        ({"rollout.eval_reward": UPPER}, "val/rewards/upper"),
    ],
)
def test_the_mean_of_one_reward_function_can_be_waited_for(
    rewards: dict[str, Any], monitor: str, random_policy: str, tmp_path: Path
) -> None:
    stopping = f"[{{class_path: EarlyStopping, init_args: {{monitor: {monitor}, mode: max}}}}]"
    waiting = {"checkpoint.monitor": monitor, "trainer.callbacks": stopping, **PLATEAU}
    waiting["model.lr_scheduler.monitor"] = monitor
    run("fit", tmp_path, random_policy, **ADAM, **rewards, **waiting)
    seen = scalars(tmp_path)[monitor]
    (kept,) = (tmp_path / "checkpoints").glob("epoch*.ckpt")
    state = torch.load(kept, weights_only=True)["callbacks"]
    (best,) = (float(each["best_model_score"]) for name, each in state.items() if "RolloutCheckpoint" in name)
    assert best == pytest.approx(max(seen.values()))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rollout.rewards": f"[{UPPER}]"}, "val/rewards/uper, which is not logged; there are val/reward"),
        ({"rollout.rewards": f"[{UPPER}]"}, "val/rewards/upper, val/rewards/upper_std, val/rewards/upper_missing"),
        ({"rollout.reward": UPPER, "rollout.eval_reward": "tests.support.fakes.LengthReward"}, "which is not logged"),
    ],
)
def test_a_reward_function_that_validation_does_not_use_is_refused(
    options: dict[str, Any], sentence: str, random_policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewards = {"rollout.reward": TEST_REWARD, **options}
    assert sentence in refusal(tmp_path, random_policy, capsys, **rewards, **{"checkpoint.monitor": "val/rewards/uper"})


@pytest.mark.parametrize(
    "key",
    ["EarlyStopping", *(pytest.param(key, marks=pytest.mark.slow) for key in ("checkpoint", "model.lr_scheduler"))],
)
def test_the_worst_of_a_reward_function_is_refused(
    key: str, random_policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = "val/rewards/upper"
    waiting: dict[str, Any] = {
        "checkpoint": {"checkpoint.monitor": monitor, "checkpoint.mode": "min"},
        "EarlyStopping": {"trainer.callbacks": STOPPING.replace("val/reward", monitor)},
        "model.lr_scheduler": {**PLATEAU, "model.lr_scheduler.monitor": monitor, "model.lr_scheduler.mode": "min"},
    }[key]
    assert f"{key}.mode is min" in refusal(tmp_path, random_policy, capsys, **PARTS, **waiting)


def test_a_plateau_lowers_the_learning_rate_after_validations(random_policy: str, tmp_path: Path) -> None:
    factor = {"model.lr_scheduler.factor": 0.5, "model.lr_scheduler.threshold": 10.0}  # nothing is ever good enough
    run("fit", tmp_path, random_policy, **ADAM, **PLATEAU, **factor, **{"trainer.max_epochs": 3})
    rates = scalars(tmp_path)["train/learning_rate"]
    assert [rates[step] for step in (0, 3, 6)] == pytest.approx([0.03, 0.03, 0.015])  # the first is the best so far


def test_warm_up_and_cosine_from_the_command_line(random_policy: str, tmp_path: Path) -> None:
    course = {"model.lr_scheduler": "WarmupCosine", "model.lr_scheduler.warmup": 2, "model.lr_scheduler.total": 6}
    run("fit", tmp_path, random_policy, **ADAM, **course)
    rates = scalars(tmp_path)["train/learning_rate"]
    expected = [0.015, 0.03, 0.03, 0.03 * (0.5 + 0.5 * 2**-0.5), 0.015, 0.03 * (0.5 - 0.5 * 2**-0.5)]
    assert [rates[step] for step in range(6)] == pytest.approx(expected)


@pytest.mark.parametrize(("warmup", "total", "floor"), [(5, 5, 0.0), (-1, 5, 0.0), (0, 5, 1.5)])
def test_an_impossible_course_is_refused(warmup: int, total: int, floor: float) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match=r"model\.lr_scheduler"):
        WarmupCosine(optimizer, warmup=warmup, total=total, floor=floor)


def test_rollouts_without_any_credit_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    guard = StepGuard(includes_ratio=False)
    with caplog.at_level(logging.WARNING):
        for rollout in range(2 * NUM_WITHOUT_CREDIT + 2):
            for step in range(2):
                has_credit = rollout == 1 and step == 0
                guard.watch({"zero_credit_fraction": 0.5 if has_credit else 1.0, "log_ratio_std": 0.0})
            guard.end_rollout()
            assert ("no group" in caplog.text) == (rollout >= 1 + NUM_WITHOUT_CREDIT)
    assert caplog.text.count("no group") == 1


def test_the_validation_before_training_is_no_validation_of_a_rollout(
    random_policy: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    options = {"checkpoint.monitor": "val/max_at_k/1", "trainer.check_val_every_n_epoch": 2}
    run("fit", tmp_path, random_policy, validate_before_fit="true", **options)
    assert not [str(each.message) for each in recwarn if "could not find the monitored key" in str(each.message)]
    (kept,) = (tmp_path / "checkpoints").glob("epoch*.ckpt")
    assert kept.stem.startswith("epoch=1")
