"""Metrics that something waits for: the best checkpoint, early stopping, a schedule that looks at validations."""

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from maxk_lightning.module import PolicyModule
from maxk_lightning.rollouts.rollout import SAMPLE_VALUES

RISING = ("reward", "max_at_k/", "pass_at_k/")
"Better when larger."


def check_monitors(trainer: Trainer, module: PolicyModule, eval_n: int) -> None:
    """Refuse to wait for a metric that is not logged, or for the worst value of one.

    Args:
        trainer: With its callbacks.
        module: With its schedule.
        eval_n: `rollout.eval_sampling.num_completions`.

    Raises:
        ValueError: naming the key and the metrics that there are.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
            check_monitor("checkpoint", callback.monitor, callback.mode, eval_n)
        elif isinstance(callback, EarlyStopping):
            check_monitor("trainer.callbacks: EarlyStopping", callback.monitor, callback.mode, eval_n)
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
        check_monitor("model.lr_scheduler", monitor, schedule.mode, eval_n)


def check_monitor(key: str, monitor: str, mode: str, eval_n: int) -> None:
    """Refuse a validation metric that is not logged, or `mode: min` for one that is better when larger.

    >>> check_monitor("checkpoint", "val/max_at_k/6", "max", eval_n=8)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: checkpoint.monitor is val/max_at_k/6, which is not logged; there are val/reward, val/max_at_k/1, ...

    Raises:
        ValueError: as said.
    """
    stage, _, tag = monitor.partition("/")
    if stage != "val":
        return
    ks = [2**exponent for exponent in range(eval_n.bit_length())]
    tags = ["reward", *(f"{name}{k}" for name in RISING[1:] for k in ks), *SAMPLE_VALUES]
    if tag not in tags:
        there = ", ".join(f"val/{each}" for each in tags)
        raise ValueError(f"{key}.monitor is {monitor}, which is not logged; there are {there}")
    if mode == "min" and tag.startswith(RISING):
        raise ValueError(f"{key}.mode is min, which takes the worst {monitor} for the best: set it to max")


def step_plateau(trainer: Trainer) -> None:
    """Show a validation amid training to a `ReduceLROnPlateau`."""
    if trainer.state.fn != "fit":
        return
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, ReduceLROnPlateau):
            config.scheduler.step(float(trainer.callback_metrics[config.scheduler.monitor]))  # type: ignore[attr-defined]
