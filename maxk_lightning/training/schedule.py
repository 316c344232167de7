"""Optimizer settings and schedule of a run that goes on with other ones than its checkpoint holds."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau


def reconfigure(
    optimizer: Optimizer,
    make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    make_schedule: Callable[[Optimizer], Any] | None,
    num_steps: int,
) -> Any:
    """Give an optimizer that holds the moments of an earlier run the settings of this one.

    Args:
        optimizer: Restored from a checkpoint.
        make_optimizer: `model.optimizer`.
        make_schedule: `model.lr_scheduler`; None: the learning rate stays as configured.
        num_steps: Optimizer steps that were made: the new schedule is where it would be, had it been there from the
            beginning. `ReduceLROnPlateau`, which depends on the metrics of the run, begins anew.

    Returns:
        The new schedule, or None.
    """
    configured = make_optimizer([nn.Parameter(torch.zeros(1))]).param_groups[0]
    for group in optimizer.param_groups:
        group.update({name: value for name, value in configured.items() if name != "params"})
        group.pop("initial_lr", None)  # a schedule notes it when it is made
    if make_schedule is None:
        return None
    schedule = make_schedule(optimizer)
    if isinstance(schedule, LRScheduler) and not isinstance(schedule, ReduceLROnPlateau):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for _ in range(num_steps):
                schedule.step()
    return schedule
