"""Metrics that something waits for: the best checkpoint, early stopping, a schedule that looks at validations."""

from collections.abc import Iterator, Mapping

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from maxk_lightning.callbacks.reward_parts import logs_more, part_weights
from maxk_lightning.datamodule import PromptDataModule
from maxk_lightning.metrics import powers_of_two
from maxk_lightning.module import PolicyModule
from maxk_lightning.rewards import Reward, gives_behaviours
from maxk_lightning.rollouts.rollout import SAMPLE_VALUES

PARTS = "rewards/"


def check_monitors(
    trainer: Trainer,
    module: PolicyModule,
    data: PromptDataModule,
    eval_n: int,
    eval_reward: Reward,
    *,
    selects: bool = False,
) -> None:
    """Refuse to wait for a metric that is not logged, for the worst value of one, or for validations that are not made.

    Args:
        trainer: With its callbacks.
        module: With its schedule.
        data: With its validation problems.
        eval_n: `rollout.eval_sampling.num_completions`.
        eval_reward: Judges the validation samples.
        selects: Whether realised best-of-k is logged.

    Raises:
        ValueError: naming the key and the metrics that there are, or why there are none.
    """
    tags, is_open = validation_tags(eval_n, part_weights(eval_reward), selects=selects), logs_more(eval_reward)
    if gives_behaviours(eval_reward):
        tags["distinct_correct"] = True
    waiting = list(_waiting(trainer, module))
    for key, monitor, mode in waiting:
        check_monitor(key, monitor, mode, tags, is_open)
    reason = _why_unvalidated(trainer, data)
    for key, monitor, _ in waiting:
        if reason is not None and monitor.startswith("val/"):
            raise ValueError(f"{key}.monitor waits for a metric of validations, but {reason}")


def _waiting(trainer: Trainer, module: PolicyModule) -> Iterator[tuple[str, str, str]]:
    """Yield key, metric and mode of what waits for one; ValueError for a schedule that could see none."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
            yield "checkpoint", callback.monitor, callback.mode
        elif isinstance(callback, EarlyStopping):
            yield "trainer.callbacks: EarlyStopping", callback.monitor, callback.mode
    if module.lr_scheduler_from is None:
        return
    schedule = module.lr_scheduler_from(module.optimizer_from([nn.Parameter(torch.zeros(1))]))
    if isinstance(schedule, ReduceLROnPlateau):
        monitor = getattr(schedule, "monitor", None)
        if monitor is None or not monitor.startswith("val/"):
            raise ValueError(
                f"model.lr_scheduler: monitor is {monitor}, must be a val/ metric; take the class "
                "lightning.pytorch.cli.ReduceLROnPlateau, which has that argument"
            )
        yield "model.lr_scheduler", monitor, schedule.mode


def _why_unvalidated(trainer: Trainer, data: PromptDataModule) -> str | None:
    """Why a run makes no validation, naming the key; None: it makes some."""
    if data.sources["validate"] is None:
        return "data.validation is null"
    if not trainer.limit_val_batches:
        return "trainer.limit_val_batches is 0"
    if 0 < (trainer.max_epochs or 0) < (trainer.check_val_every_n_epoch or 1):
        return "trainer.check_val_every_n_epoch is above trainer.max_epochs"
    return None


def validation_tags(eval_n: int, weights: Mapping[str, float], *, selects: bool = False) -> dict[str, bool]:
    """Tags of a validation without `val/`, and whether a larger value is better than a smaller one, as far as is known.

    Args:
        eval_n: Samples per problem.
        weights: Name -> weight of the parts of the reward.
        selects: Whether realised best-of-k is logged.

    >>> [tag for tag, is_rising in validation_tags(2, {"correct": 1.0, "length": -0.1}).items() if is_rising]
    ['reward', 'max_at_k/1', 'max_at_k/2', 'pass_at_k/1', 'pass_at_k/2', 'rewards/correct']
    """
    names = ["max_at_k", "pass_at_k", *(["realised_max_at_k"] if selects else [])]
    tags = dict.fromkeys(["reward", *(f"{name}/{k}" for name in names for k in powers_of_two(eval_n))], True)
    for name, weight in weights.items():
        tags[f"{PARTS}{name}"] = weight > 0
        tags |= dict.fromkeys([f"{PARTS}{name}_std", f"{PARTS}{name}_missing"], False)
    return tags | dict.fromkeys(SAMPLE_VALUES, False)


def check_monitor(key: str, monitor: str, mode: str, tags: Mapping[str, bool], is_open: bool) -> None:
    """Refuse a validation metric that is not logged, or `mode: min` for one that is better when larger.

    Args:
        key: Configuration key that names it.
        monitor: Metric.
        mode: `min` or `max`.
        tags: As `validation_tags` gives them.
        is_open: Whether the reward may log more than its own names.

    >>> check_monitor("checkpoint", "val/max_at_k/6", "max", validation_tags(8, {}), False)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: checkpoint.monitor is val/max_at_k/6, which is not logged; there are val/reward, val/max_at_k/1, ...

    Raises:
        ValueError: the metric is not logged, or `mode` would take its worst value for the best.
    """
    stage, _, tag = monitor.partition("/")
    if stage != "val" or (is_open and tag.startswith(PARTS) and tag not in tags):
        return
    if tag not in tags:
        there = ", ".join(f"val/{each}" for each in tags)
        hint = " (what a reward function logs itself: it has to name its argument `log_metric`)"
        raise ValueError(
            f"{key}.monitor is {monitor}, which is not logged; there are {there}{hint * tag.startswith(PARTS)}"
        )
    if mode == "min" and tags[tag]:
        raise ValueError(f"{key}.mode is min, which takes the worst {monitor} for the best: set it to max")


def step_plateau(trainer: Trainer) -> None:
    """Show a validation during training to a `ReduceLROnPlateau`."""
    if trainer.state.fn != "fit":
        return
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, ReduceLROnPlateau):
            config.scheduler.step(float(trainer.callback_metrics[config.scheduler.monitor]))  # type: ignore[attr-defined]
