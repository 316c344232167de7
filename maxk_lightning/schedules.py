"""Learning rate schedules, and how a resumed run takes up a new one. Schedules count optimizer steps."""

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau


class WarmupCosine(LambdaLR):
    """Rises linearly to the learning rate of the optimizer, then falls along half a cosine."""

    def __init__(self, optimizer: Optimizer, warmup: int, total: int, floor: float = 0.0) -> None:
        """Choose the course.

        Args:
            optimizer: Whose learning rate is the peak.
            warmup: Optimizer steps until the peak; the first one has 1 / warmup of it.
            total: Optimizer steps of the run: rollouts (`trainer.max_epochs`) x `data.num_ppo_iterations` x
                `data.prompts_per_rollout` / `data.prompts_per_step`. Behind them the rate stays at the floor.
            floor: Share of the peak at which it ends.

        Raises:
            ValueError: not 0 <= warmup < total, or a floor outside [0, 1].
        """
        if not 0 <= warmup < total:
            raise ValueError(f"model.lr_scheduler: warmup is {warmup}, total {total}; must be 0 <= warmup < total")
        if not 0.0 <= floor <= 1.0:
            raise ValueError(f"model.lr_scheduler: floor is {floor}, must be from 0 to 1")

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            done = min(1.0, (step - warmup) / (total - warmup))
            return floor + (1.0 - floor) * (1.0 + math.cos(math.pi * done)) / 2.0

        super().__init__(optimizer, factor)  # a function is in no checkpoint: the configuration holds it


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
