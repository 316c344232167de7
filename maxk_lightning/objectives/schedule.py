"""Objectives made of objectives: a weighted sum of several k, and a k that changes during training.

The paper leaves schedules of k to future work; annealing k from 8 down to 1 explores first and sharpens later:

    objective:
      class_path: maxk_lightning.objectives.Staged
      init_args:
        objectives:
          - {class_path: maxk_lightning.objectives.MaxAtK, init_args: {k: 8, baseline: loo1}}
          - {class_path: maxk_lightning.objectives.MaxAtK, init_args: {k: 4}}
          - {class_path: maxk_lightning.objectives.MaxAtK, init_args: {k: 1}}
        starts: [0.0, 0.5, 0.8]
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maxk_lightning.objectives.objective import GroupFacts, Objective, credits_of, needs_behaviours, told_ks
from maxk_lightning.objectives.plug_in import PlugInMaxAtK


@dataclass(frozen=True)
class WeightedObjectives(Objective):
    """Weighted sum of the credits of several objectives: the gradient of the same sum of what they ascend."""

    objectives: list[Objective]
    "Objectives, at least one; all or none of them have credits that contain the ratio."
    weights: list[float]
    "Finite weights, one per objective; used as they are, not normalised."

    def __post_init__(self) -> None:
        check_alike(self.objectives)
        if any(isinstance(objective, Staged) for objective in self.objectives):
            raise ValueError("`objectives` of WeightedObjectives must not be Staged; put them into a Staged instead")
        told = {tuple(told_ks(objective)) for objective in self.objectives if told_ks(objective)}
        if len(told) > 1:
            raise ValueError(f"`objectives` must all draw k from the same numbers, not from {sorted(told)}")
        if len(self.weights) != len(self.objectives):
            raise ValueError(f"`weights` has {len(self.weights)} numbers for {len(self.objectives)} `objectives`")
        if not torch.tensor(self.weights).isfinite().all():
            raise ValueError(f"`weights` is {self.weights}, must be finite")

    @property
    def includes_ratio(self) -> bool:
        """Whether the credits contain the ratio; see `Objective`."""
        return self.objectives[0].includes_ratio

    @property
    def needs_behaviours(self) -> bool:
        """Whether one of them does; see `Objective`."""
        return any(map(needs_behaviours, self.objectives))

    @property
    def told_ks(self) -> Sequence[int]:
        """Those of the parts that need a k drawn, which all have the same; see `Objective`."""
        return next((ks for ks in map(told_ks, self.objectives) if ks), ())

    def __call__(
        self,
        rewards_PN: Tensor,
        log_ratios_PN: Tensor,
        behaviours_PN: Tensor | None = None,
        told_ks_P: Tensor | None = None,
    ) -> Tensor:
        """Sum the weighted credits; see `Objective`."""
        facts = GroupFacts(behaviours_PN=behaviours_PN, told_ks_P=told_ks_P)
        parts = [
            weight * credits_of(objective, rewards_PN, log_ratios_PN, facts)
            for objective, weight in zip(self.objectives, self.weights, strict=True)
        ]
        return torch.stack(parts).sum(0)


Mixture = WeightedObjectives
"Second name of `WeightedObjectives` in configurations; `maxk_lightning.data.Mixture` is another thing."


@dataclass(frozen=True)
class Staged(Objective):
    """One objective after another, by progress through training; the training loop calls `objective_at`."""

    objectives: list[Objective]
    "Objectives, at least one; all or none of them have credits that contain the ratio."
    starts: list[float]
    "Progress in [0, 1) at which each one takes over; increasing, the first is 0."

    def __post_init__(self) -> None:
        check_alike(self.objectives)
        if any(isinstance(objective, Staged) for objective in self.objectives):
            raise ValueError("`objectives` of a Staged must not be Staged themselves")
        if any(map(told_ks, self.objectives)):
            raise ValueError("`objectives` of a Staged has a ToldK, whose prompts would tell k in the other stages too")
        if len(self.starts) != len(self.objectives):
            raise ValueError(f"`starts` has {len(self.starts)} numbers for {len(self.objectives)} `objectives`")
        is_increasing = all(a < b for a, b in zip(self.starts, self.starts[1:], strict=False))
        if self.starts[0] != 0.0 or not is_increasing or not self.starts[-1] < 1.0:
            raise ValueError(f"`starts` is {self.starts}, must begin with 0, increase, and stay below 1")

    @property
    def includes_ratio(self) -> bool:
        """Whether the credits contain the ratio; see `Objective`."""
        return self.objectives[0].includes_ratio

    @property
    def needs_behaviours(self) -> bool:
        """Whether a stage does; see `Objective`."""
        return any(map(needs_behaviours, self.objectives))

    def at(self, progress: float) -> Objective:
        """Return the objective in force at this progress through training, 0 (start) to 1 (end).

        Raises:
            ValueError: progress is outside [0, 1].
        """
        if not 0.0 <= progress <= 1.0:
            raise ValueError(f"progress is {progress}, must be between 0 and 1")
        last_started = max(index for index, start in enumerate(self.starts) if start <= progress)
        return self.objectives[last_started]

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        """Raise TypeError: without a progress it is not known which objective is meant."""
        raise TypeError(
            "a Staged objective has credits only at a given progress: call objective_at(objective, progress)"
        )


def objective_at(objective: Objective, progress: float) -> Objective:
    """Return the objective in force at this progress in [0, 1]: the stage of a `Staged` one, itself for any other."""
    return objective.at(progress) if isinstance(objective, Staged) else objective


def largest_k(objective: Objective) -> int:
    """Return the largest k among the parts of an objective; 1 if none has a k."""
    return max(int(getattr(part, "k", 1)) for part in parts_of(objective))


def largest_subset(objective: Objective) -> int:
    """Return the most samples that a part needs in a group: its k, but 1 for `PlugInMaxAtK`, whose k may exceed n."""
    return max((largest_k(part) for part in parts_of(objective) if not isinstance(part, PlugInMaxAtK)), default=1)


def parts_of(objective: Objective) -> list[Objective]:
    """List the objectives that a `WeightedObjectives` or `Staged` one is made of; of any other, itself."""
    if isinstance(objective, WeightedObjectives | Staged):
        return [part for each in objective.objectives for part in parts_of(each)]
    return [objective]


def check_alike(objectives: list[Objective]) -> None:
    """Refuse an empty list, and one that mixes credits with and without the ratio, with ValueError."""
    if not objectives:
        raise ValueError("`objectives` is empty, needs at least one")
    if len({objective.includes_ratio for objective in objectives}) > 1:
        names = ", ".join(f"{type(o).__name__} ({'with' if o.includes_ratio else 'without'})" for o in objectives)
        raise ValueError(f"`objectives` must all have credits with the ratio inside, or all without: {names}")
