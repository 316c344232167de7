"""The check of an objective against the size of the groups, before anything expensive runs."""

import torch
from torch import Tensor

from maxk_lightning.objectives.objective import GroupFacts, Objective, credits_of, told_ks
from maxk_lightning.objectives.schedule import Staged


def check_group_size(objective: Objective, num_completions: int) -> None:
    """Refuse an objective that cannot work with groups of this size, before anything expensive runs.

    Tries the objective, or every stage of a `Staged` one, on a group with a single success, so that a user's class
    needs no method of its own for this.

    Raises:
        ValueError: the objective raises it, has no `includes_ratio`, or gives credits of a wrong shape or not finite.
    """
    rewards_PN = torch.zeros(1, num_completions)
    rewards_PN[:, :1] = 1.0
    for stage in objective.objectives if isinstance(objective, Staged) else [objective]:
        name = type(stage).__name__
        if not isinstance(getattr(stage, "includes_ratio", None), bool):
            raise ValueError(
                f"`objective`: {name} must say with `includes_ratio: bool` whether its credits contain rho"
            )
        for told_k in told_ks(stage) or [0]:
            _check_credits(stage, name, rewards_PN, told_k)


def _check_credits(objective: Objective, name: str, rewards_PN: Tensor, told_k: int) -> None:
    num_completions = rewards_PN.shape[1]
    facts = GroupFacts(behaviours_PN=torch.arange(num_completions).unsqueeze(0), told_ks_P=torch.tensor([told_k]))
    credits_PN = credits_of(objective, rewards_PN, torch.zeros_like(rewards_PN), facts)
    if not isinstance(credits_PN, Tensor) or credits_PN.shape != rewards_PN.shape:
        raise ValueError(f"`objective`: {name} must return one credit per sample, shape {tuple(rewards_PN.shape)}")
    if not credits_PN.isfinite().all():
        raise ValueError(f"`objective`: {name} gives credits that are not finite for {num_completions} completions")
